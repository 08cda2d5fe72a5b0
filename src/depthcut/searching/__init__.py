"""A model and a text to the layers it can best spare, by measuring what their removal costs."""
