"""Label on several machines with Ray."""
