"""What people see of a run of generation: its page, figures, forecast. Its files stand in datasets/runs."""
