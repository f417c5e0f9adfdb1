"""`msft sql` and the analyses that come with msft."""
