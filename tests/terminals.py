"""Runs a program on a terminal of its own: what it shows there, progress bars and colours included.

Called by the tests of the command line.
"""

from __future__ import annotations

import os
import pty
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def on_terminal(
    command: Sequence[str], *, environment: Mapping[str, str], width: int = 200, cwd: Path | None = None
) -> tuple[int, str]:
    """The exit code and everything that reached the terminal, from both outputs."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(width), **environment},
    )
    os.close(follower)
    seen = bytearray()
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # how Linux says that nobody has the other end open
            break
        if not data:
            break
        seen += data
    os.close(leader)
    return process.wait(60), seen.decode()
