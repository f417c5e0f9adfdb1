"""Store every completed call in a durable segment file."""
