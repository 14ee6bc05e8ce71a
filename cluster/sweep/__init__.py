"""Searches over stages, pool and top-k."""
