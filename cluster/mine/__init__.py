"""Ways of mining, measured offline: one engine and one table for `vidssl mine` and `vidssl sweep`."""
