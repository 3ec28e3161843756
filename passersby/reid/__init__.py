"""Re-identification networks and their files. How they are trained stands in training/reid."""
