"""Training: `python -m students.train`."""
