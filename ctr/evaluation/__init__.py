"""What scores are worth: metrics, intervals, slices, and the baselines beside them."""
