"""The protocols of re-ranking benchmarks."""
