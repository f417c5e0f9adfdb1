"""The encoder and its packed attention."""
