"""What `vidssl evaluate` measures of a trained encoder, and how it prints it."""
