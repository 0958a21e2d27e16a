"""Training: one trainer for all frameworks, its checkpoints, and what it shows while it runs."""
