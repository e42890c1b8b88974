"""Offline scoring: many requests in one batch of `scorer.onnx`."""
