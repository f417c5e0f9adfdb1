"""Is the store what it says it is? `verify.verify` asks, check by check; `digest.content_hash` sums up its content."""
