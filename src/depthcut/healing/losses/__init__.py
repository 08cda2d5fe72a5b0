"""What training makes small, and the teacher that is asked for it."""
