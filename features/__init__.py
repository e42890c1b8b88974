"""Raw behaviour logs and item vectors -> a versioned feature set. Never imports torch, mlflow or optuna."""
