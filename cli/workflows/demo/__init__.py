"""`msft demo`: the whole path on real text, offline."""
