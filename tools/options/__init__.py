"""Options that several commands share, and the values that people may write for them."""
