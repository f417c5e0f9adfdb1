"""Lists to scores: torch and ONNX."""
