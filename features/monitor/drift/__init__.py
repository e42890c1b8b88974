"""Whether two feature sets are of the same world."""
