"""What configs of every model type say of their layers, and how each is cut: data, no files."""
