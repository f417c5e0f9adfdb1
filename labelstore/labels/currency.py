"""The currency of all prices and costs: the registry's, and those of `--input-price` and `--output-price`."""

CURRENCY = "USD"
