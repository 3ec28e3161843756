"""What people see of a ranking: tables, curves, pictures of queries. The ranking itself stands in passersby/metrics."""
