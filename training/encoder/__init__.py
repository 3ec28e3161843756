"""Training of the ReStyle encoder: configuration, step, validation, run. The networks stand in passersby/restyle."""
