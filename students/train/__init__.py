"""Train students (`python -m students.train`)."""
