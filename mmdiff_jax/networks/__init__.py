"""Flax networks: arrays and times in, arrays out. They know nothing of diffusion processes."""
