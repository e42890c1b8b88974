"""Warm starts: training goes on from the weights and moments of an earlier run, over vocabularies that have grown."""
