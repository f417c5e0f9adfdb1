"""What this machine has installed, how its user lets others read files, and how its disk keeps what was written."""
