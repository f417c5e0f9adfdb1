"""Merge two stores: a set union by text ids and content keys."""
