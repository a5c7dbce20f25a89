"""Runs programs in processes of their own: one, or a crew that begins at the same moment.

Called by the tests on processes, forks and exits. A program is Python text; its arguments are in `sys.argv`. Whatever
it leaves running is killed after a while, so that a test that has found a deadlock fails and does not hang.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

PATIENCE_SECONDS = 40
# Python 3.12 and later warn of every fork in a process with threads, which is what these programs are about.
_WARNINGS = ("-Werror", "-Wignore:This process:DeprecationWarning")

# In front of every program of a crew: `begin()` waits until all of them have come so far.
_BEGIN = """
import sys
def begin():
    print("ready", flush=True)
    sys.stdin.readline()
"""


class Child:
    """A process that runs a program. A context manager that leaves nothing of it behind."""

    def __init__(self, program: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *_WARNINGS, "-c", _BEGIN + program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,  # whatever `line()` would read ahead, `communicate()` would never see
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it, and what it has forked."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def line(self) -> str:
        """The next line that it prints; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def tell(self, line: str = "") -> None:
        """Let it go on from where it reads a line, `begin()` for one."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def output(self) -> str:
        """What it prints until its end, which is to be a quiet one."""
        try:
            output, errors = map(bytes.decode, self.process.communicate(timeout=PATIENCE_SECONDS))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, errors = map(bytes.decode, self.process.communicate())
            raise AssertionError(f"hangs; printed: {output}{errors}") from None
        assert (self.process.returncode, errors) == (0, ""), f"{self.process.returncode}\n{output}\n{errors}"
        return output.strip()


def run(program: str, *arguments: object) -> str:
    """What a program prints."""
    with Child(program, *arguments) as child:
        return child.output()


def run_together(program: str, count: int, *arguments: object) -> list[str]:
    """What so many processes print; they begin at the same moment, and the last argument of each is its number."""
    crew = [Child(program, *arguments, number) for number in range(count)]
    try:
        for child in crew:
            assert child.line() == "ready", child.output()
        for child in crew:
            child.tell()
        return [child.output() for child in crew]
    finally:
        for child in crew:
            child.kill()
