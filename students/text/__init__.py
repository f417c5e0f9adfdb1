"""Turn texts into tokens, cache them, and form batches."""
