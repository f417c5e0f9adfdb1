"""Templates, passages as prompts show them, replies."""
