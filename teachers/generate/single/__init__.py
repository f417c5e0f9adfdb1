"""Ask an LLM about one passage at a time: for queries, and for judgments. The calls are as durable as those of labels."""
