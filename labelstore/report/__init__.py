"""The store as one HTML page."""
