"""One file, one stage class of a Ray Data pipeline."""
