"""Who made each row, from what, with what; lineage."""
