"""From files to batches: datasets, codecs, the order of images, and reading ahead."""
