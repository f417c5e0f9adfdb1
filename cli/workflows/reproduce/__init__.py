"""`msft reproduce`: run the grid of a study and show its table."""
