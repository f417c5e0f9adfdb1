"""Judgments beyond qrels: pools to judge, the sheet for people, and the grades of LLM judges, kept apart from both."""
