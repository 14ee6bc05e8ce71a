"""What pages are made of: HTML parts and pictures."""
