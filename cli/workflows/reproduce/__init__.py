"""`msft reproduce`: the grid of a study and its table."""
