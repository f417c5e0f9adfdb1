"""Benchmarks of msft and its peers: `python -m benchmarks` lists them, `python -m benchmarks.NAME` runs one.

Each benchmark prints one flat JSON object as the last line of stdout and its progress to stderr.
"""
