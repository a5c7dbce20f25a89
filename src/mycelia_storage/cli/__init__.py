"""The command `mycelia-storage`: its entry point, which says what to install where something is missing.

Called by the console script and by `python -m mycelia_storage.cli`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NEEDED = ("rich", "typer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` are the process's own unless given."""
    try:
        from mycelia_storage.cli.app import run  # noqa: PLC0415 - typer and rich come with an extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _NEEDED:
            raise
        sys.stderr.write(f"mycelia-storage: {error.name} is missing: install mycelia-storage with its extra 'cli'\n")
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
