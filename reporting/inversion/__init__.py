"""What people see of an inversion: its sheet and its summary. Its files stand in datasets/latents."""
