"""Figures, MLflow runs and the registry."""
