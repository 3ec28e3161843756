"""Reports of an inversion: its sheet and its summary. Its shards and tables are in datasets/latents."""
