"""Trained model to a bundle of ONNX graphs, proven equal to torch."""
