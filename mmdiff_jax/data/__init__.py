"""Data sets, how they are rendered and prepared, and the input pipeline."""
