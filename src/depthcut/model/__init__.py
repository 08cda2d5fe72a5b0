"""The only place that builds a model: finding, loading, its layers, its states."""
