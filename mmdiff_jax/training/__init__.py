"""Training: one trainer for all frameworks, its checkpoints, and its metrics and reports."""
