"""Mine hard negatives and denoise them."""
