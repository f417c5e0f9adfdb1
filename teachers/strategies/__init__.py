"""Window strategies as plug-ins: each a pure generator; `teachers.strategies.by_name` names them."""
