"""Sources that can be packed: one file per format, one line each in `pipelines.packing.catalog`."""
