"""Re-ranking over HTTP; knows no store."""
