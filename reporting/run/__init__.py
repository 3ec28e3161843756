"""What people see of a run of generation: its page, figures, forecast. Its plans and shards stand in datasets/runs."""
