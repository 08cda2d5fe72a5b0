"""Benchmarks: questions of lm-eval put to models, and what the answers say, item by item."""
