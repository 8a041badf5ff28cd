"""Studies: train variants with the same data, seeds and budget, and compare them."""
