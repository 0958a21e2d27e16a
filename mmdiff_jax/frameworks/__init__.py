"""Frameworks: which spaces are diffused, which network predicts, what is trained in which stage."""
