"""Open, lock and migrate the store; keys, look-ups, SQL steps."""
