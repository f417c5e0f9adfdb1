"""Read, repair, write and export LLM labels; their quality."""
