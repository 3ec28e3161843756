"""What people see of a generator: its scores and its card. The scores themselves stand in passersby/metrics."""
