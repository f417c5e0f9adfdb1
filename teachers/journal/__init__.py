"""Every completed call in a durable segment file."""
