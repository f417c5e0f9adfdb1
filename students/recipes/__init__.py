"""Read typed recipes; some come with msft."""
