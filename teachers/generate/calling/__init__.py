"""One call of a teacher: what a reply depends on, how it is read, and the records that are kept of it."""
