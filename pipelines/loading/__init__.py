"""From the seeded order to clips on the device."""
