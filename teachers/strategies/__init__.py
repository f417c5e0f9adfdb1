"""Window strategies: each is a pure generator, selected by name in `teachers.strategies.by_name`."""
