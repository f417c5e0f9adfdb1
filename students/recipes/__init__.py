"""Typed recipes and those that come with msft."""
