"""Prompts: templates, passages prepared for prompts, and the parser of replies."""
