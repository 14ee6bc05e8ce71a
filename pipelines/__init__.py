"""Bytes and frames: videos → verified shards → clips on the device."""
