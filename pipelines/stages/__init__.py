"""The scheduled job as a chain of stages, each done once for the same inputs, settings and code."""
