"""From noise to images: samplers, guidance, and generation by seed."""
