"""One file, one stage class of a Ray Data pipeline. No stage imports another, or Ray, which pipeline/ does."""
