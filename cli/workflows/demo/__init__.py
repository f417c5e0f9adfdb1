"""`msft demo`: run the whole path on real text, offline."""
