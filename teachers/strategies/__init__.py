"""Window strategies as plug-ins: each a pure generator; `teachers.windows` names them."""
