"""Connect students to the store: export views, train, re-rank runs, merge rows back."""
