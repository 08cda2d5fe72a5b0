"""GGUF files: the format, and what their metadata and llama.cpp know of layers."""
