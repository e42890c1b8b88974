"""The click model: encoders, embeddings, history readers, a tower and a calibration."""
