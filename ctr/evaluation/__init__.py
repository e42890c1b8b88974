"""Evaluation of scores: metrics, intervals over users, slices, top lists, and baselines."""
