"""A bundle as other programs take it: a folder elsewhere, or a model of a Triton repository, replayed where it lies."""
