"""From foreign videos to verified shards."""
