"""What lies in a packed folder, and how it is read."""
