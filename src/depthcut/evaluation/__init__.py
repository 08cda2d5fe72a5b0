"""Checkpoints and a text in, an Evaluation out: quality, speed and generations."""
