"""`python -m cluster …`: the same verbs as `vidssl …`, for `ray job submit`."""

from __future__ import annotations

from cluster.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
