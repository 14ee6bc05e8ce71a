"""Can this machine do it, and with what? `vidssl doctor`."""
