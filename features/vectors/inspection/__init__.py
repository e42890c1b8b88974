"""What a vector set is worth before a model is trained on it."""
