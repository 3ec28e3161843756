"""One file holds one stage class of a Ray Data pipeline. Stages import neither each other nor Ray: pipeline/ does."""
