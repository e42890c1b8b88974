"""A log with planted click probabilities, to measure a pipeline against the optimum."""
