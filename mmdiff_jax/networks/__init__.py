"""Flax networks: arrays and times in, arrays out. No diffusion in them."""
