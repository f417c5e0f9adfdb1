"""Tables, LaTeX, errors and progress."""
