"""Model and batches to trained, calibrated weights."""
