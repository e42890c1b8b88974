"""From the body of a request to its answer: which version ranks, in which thread, and what stands in for it."""
