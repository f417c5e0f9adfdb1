"""Re-rank over HTTP, without a store."""
