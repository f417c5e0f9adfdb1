"""What this machine has installed, and how its user lets others read files."""
