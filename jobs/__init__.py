"""One file, one entry point of `ray job submit`, that reads as its pipeline. What jobs share stands in pipeline/."""
