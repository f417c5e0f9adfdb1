"""Check a store: `verify.verify` runs the checks, `digest.content_hash` hashes the content."""
