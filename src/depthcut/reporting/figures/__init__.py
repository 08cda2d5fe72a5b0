"""Figures: charts with their numbers, in light and dark."""
