"""What people see of an inversion: its sheet and its summary. Its shards and tables stand in datasets/latents."""
