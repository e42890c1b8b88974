"""Boosted trees: what they read of a row, how they grow, and how they score."""
