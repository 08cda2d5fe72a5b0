"""Which weights of a model train, and what they become."""
