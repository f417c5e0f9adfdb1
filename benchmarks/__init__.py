"""Measurements with their peers: `python -m benchmarks` lists them, `python -m benchmarks.NAME` runs one.

Each prints one flat JSON object as the last line of stdout; what it is doing goes to stderr.
"""
