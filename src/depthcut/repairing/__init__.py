"""A plan and a text in, the cut checkpoint out with new values of kept tensors, in closed form."""
