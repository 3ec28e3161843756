"""One file, one entry point of `ray job submit`."""
