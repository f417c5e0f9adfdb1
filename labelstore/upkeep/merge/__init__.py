"""`msft merge`: two stores as one, a set union by text ids and content keys."""
