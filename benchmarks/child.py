"""Runs the library's command line in a process of its own and reports what memory it took.

Started by `importing` as `python -m benchmarks.child REPORT ARGUMENT…`; not meant to be run by hand.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import orjson

from mycelia_storage.cli import main


def resident_peak() -> int:
    """The most bytes this process has held so far.

    On Linux from /proc: what `getrusage` gives there begins with the memory of the parent that forked it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run(report: str, arguments: list[str]) -> None:
    """Do as the command would, then write down seconds and bytes."""
    sys.argv = ["mycelia-storage", *arguments]
    start = time.perf_counter()
    try:
        main()
    finally:
        figures = {"seconds": time.perf_counter() - start, "peak": resident_peak()}
        Path(report).write_bytes(orjson.dumps(figures))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
