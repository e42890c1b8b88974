"""Compiled loops and their gradients, for CPUs."""
