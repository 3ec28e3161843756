"""The page of a sweep. Its statistics are in passersby/metrics."""
