"""Reports of a ranking: tables, curves, pictures of queries. The ranking itself is in passersby/metrics."""
