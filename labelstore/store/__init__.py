"""Open, lock and migrate the store; make keys, look up names, run SQL steps."""
