"""Step functions without Ray, and the loops that Ray Train calls."""
