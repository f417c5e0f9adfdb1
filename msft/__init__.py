"""What all four packages may import and what imports none of them: the errors, and a few functions without a library."""
