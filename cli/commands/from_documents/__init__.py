"""Commands for those who have documents and little else: queries and judgments by an LLM."""
