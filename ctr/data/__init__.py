"""Feature set to batches: shuffled epochs, ids-only batches, prefetching."""
