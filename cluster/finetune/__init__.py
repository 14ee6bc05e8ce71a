"""Supervised training from a pre-trained encoder."""
