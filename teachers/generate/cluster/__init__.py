"""Labelling on several machines with Ray."""
