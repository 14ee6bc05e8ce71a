"""Processes and machines: Ray Train, the bank actor, Tune, jobs and the command line."""
