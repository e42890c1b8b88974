"""Item vectors: read, normalised, reduced, fused, coded and stored, all fitted on the training window alone."""
