"""From a trained model to a bundle of ONNX graphs, whose scores are compared with the model's."""
