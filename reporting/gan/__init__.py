"""Reports of a generator: its scores and its card. The scores themselves are computed in passersby/metrics."""
