"""The version, alone, so that light modules can name it."""

__version__ = "0.1.0"
