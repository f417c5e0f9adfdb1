"""Typed recipes, and the recipes that come with msft."""
