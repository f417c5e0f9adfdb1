"""Generated queries: where each comes from, and the filters that it passed or failed. Their positives are never qrels."""
