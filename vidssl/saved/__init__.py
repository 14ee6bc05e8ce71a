"""What outlives a process: runs, checkpoints, cards, embeddings, published files."""
