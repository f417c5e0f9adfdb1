"""Score lists of passages, with torch or ONNX."""
