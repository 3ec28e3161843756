"""The page of a sweep. Its statistics stand in passersby/metrics."""
