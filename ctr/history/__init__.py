"""Readers of a user's history for one target: one file each, all written against `TargetHistory`."""
