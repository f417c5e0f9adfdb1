"""Errors and small functions without dependencies, which all four packages may import."""
