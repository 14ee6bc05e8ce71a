"""One training: the driver, its workers, what they log."""
