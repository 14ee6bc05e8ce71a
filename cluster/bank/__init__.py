"""The embedding bank as a process: what workers ask of it and how it answers."""
