"""Models in, how fast they are out: speed, memory and energy, the models in turn."""
