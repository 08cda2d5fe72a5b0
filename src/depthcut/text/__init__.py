"""Any text source: to documents, to sequences of tokens."""
