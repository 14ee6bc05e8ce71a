"""Which other videos are positives of this one? Plans, the exact cascade, its backends and measures."""
