"""Training views and their folders."""
