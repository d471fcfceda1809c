"""Predictions: what a network, an exchange or any ONNX file would take, without measuring it."""
