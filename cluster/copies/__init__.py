"""The copy of a run in a store (`trainer.copy_to`): kept while the run goes on, and fetched where the run is not."""
