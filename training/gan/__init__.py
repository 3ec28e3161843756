"""GAN training: configuration, data, step, validation, run. The networks are in passersby/stylegan3."""
