"""Archive a store and show its status; verify and merge stores."""
