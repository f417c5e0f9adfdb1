"""Load and run a cross-encoder, padded or packed."""
