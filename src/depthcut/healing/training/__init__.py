"""The loop: steps over a text, judged, kept on the way, going on after a kill."""
