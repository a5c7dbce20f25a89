"""`python -m mycelia_storage.cli`: the same command where its script is not on the path."""

from __future__ import annotations

import sys

from mycelia_storage.cli import main

if __name__ == "__main__":
    sys.exit(main())
