"""Measure the bases that students began from, so that an evaluation shows what the training changed."""
