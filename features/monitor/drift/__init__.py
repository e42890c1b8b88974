"""Distribution drift between two feature sets."""
