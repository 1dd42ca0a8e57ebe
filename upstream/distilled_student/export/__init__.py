"""Models for devices: ONNX graphs of utterances and of streams, int8, ExecuTorch."""
