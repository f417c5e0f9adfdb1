"""Check a store (`verify.verify`) and hash its content (`digest.content_hash`)."""
