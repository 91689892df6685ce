"""``python -m forethought``: the same program as the ``forethought`` command."""

from __future__ import annotations

import sys

from forethought.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
