"""GAN training: configuration, data, step, validation, run. The networks stand in passersby/stylegan3."""
