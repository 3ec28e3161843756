"""Generated images for other tools: which images, under which names, in which files. Reading a run stands in runs/."""
