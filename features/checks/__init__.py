"""Checks on the log's real rows: what is refused, put aside or told of."""
