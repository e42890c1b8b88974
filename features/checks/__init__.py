"""Checks of the log and of history tables: what stops a build, what is left out, what is reported."""
