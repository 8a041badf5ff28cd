"""Networks from and to files: snapshots, published pickles, pipelines, the hub; images and NPZ files."""
