"""Archive, status; verify and merge."""
