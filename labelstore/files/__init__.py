"""Lines, TREC files and JSONL, compressed or plain."""
