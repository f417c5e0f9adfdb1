"""Import, write and export runs; ir_metadata."""
