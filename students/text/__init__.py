"""Tokens, token cache and batches."""
