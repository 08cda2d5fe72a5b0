"""A model and a text to a survey: how redundant each layer and block is."""
