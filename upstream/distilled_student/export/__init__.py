"""Exports models for devices: ONNX graphs of utterances and of streams, int8 graphs, ExecuTorch programs."""
