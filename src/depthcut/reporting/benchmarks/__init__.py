"""Benchmarks for a page, a terminal, a paper and a model card."""
