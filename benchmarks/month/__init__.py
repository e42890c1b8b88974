"""A month of nightly jobs on a log that drifts, with troubles, and nobody who helps."""
