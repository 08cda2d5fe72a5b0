"""Checkpoints on disk: headers, byte ranges, and what each architecture says of its layers."""
