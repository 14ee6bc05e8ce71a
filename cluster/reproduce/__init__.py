"""`vidssl reproduce`: from the archives to the papers' table."""
