"""What is read and written: data sets, runs, exports, latents, the toy crowd. What computes on it stands elsewhere."""
