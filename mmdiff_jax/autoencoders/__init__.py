"""Autoencoders: a modality's view to a flat latent and back. One file a kind of modality."""
