"""A cut checkpoint and a text in, a trained checkpoint out."""
