"""Diagnosis of a trained model: corrupted vectors, shuffled inputs, and explanations of single scores."""
