"""Add datasets from a folder or ir_datasets; the catalogue."""
