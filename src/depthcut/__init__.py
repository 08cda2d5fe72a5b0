"""depthcut: make a pretrained language model shallower."""

__version__ = "0.1.0"
