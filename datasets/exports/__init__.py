"""Generated images for other tools: which images, under which names, in which files. Runs stand in runs/."""
