"""The process beside a test server: it starts and signals it, and takes it down when whoever wanted it is gone.

Run by `postgres_server.py`, as a program and without this package. Its argument is JSON: the directory to remove at
the end, the command, its environment, and the user to run it as. It obeys lines (`start 5432`, `signal 15`, `end`) and
prints what happened (`started 1234`, `ended 0`). At the end of its input, which comes however its parent ends, nothing
is left: no server, no process of the server, no shared memory, no directory.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IPC_RMID = 0
_IS_LINUX = sys.platform == "linux"
_PATIENCE_SECONDS = 10


class Guard:
    """One server, started and ended any number of times."""

    def __init__(self, directory: str, command: list[str], environment: dict[str, str], user: int | None) -> None:
        self._directory = directory
        self._command = command
        self._environment = environment
        self._user = user
        self._server: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()
        self._libc = ctypes.CDLL(None) if _IS_LINUX else None
        if self._libc is not None:
            # What a killed server leaves running becomes ours, and can be ended by us.
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> None:
        """Obey until the input ends."""
        woken, waking = os.pipe()
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        rest = b""
        while True:
            ready, _, _ = select.select([0, woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self._look()
            if 0 in ready:
                read = os.read(0, 4096)
                if not read:
                    break
                *lines, rest = (rest + read).split(b"\n")
                if b"end" in lines:
                    break
                for line in lines:
                    self._obey(line.decode())
        self._end()

    def _obey(self, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "start" and self._server is None:
            self._start(port=number)
        elif word == "signal" and self._server is not None:
            self._server.send_signal(int(number))

    def _start(self, port: str) -> None:
        with open(f"{self._directory}/log", "ab") as log:
            server = subprocess.Popen(  # noqa: S603
                [*self._command, "-p", port],
                cwd=self._directory,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self._die_with_us if _IS_LINUX else None,  # noqa: PLW1509 - there are no threads here
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        self._server = server
        _tell("started", server.pid)

    def _die_with_us(self) -> None:
        """In the server's process, before it is the server: should this guard be killed, so is the server.

        Changing the user takes this off again, so it comes after that.
        """
        assert self._libc is not None
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)
        if os.getppid() != self._pid:
            os._exit(1)

    def _look(self) -> None:
        """Tell of the server's end, once every process of it has ended."""
        if self._server is None or self._server.poll() is None:
            return
        code = self._server.returncode
        self._server = None
        while _IS_LINUX:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
        self._remove_shared_memory()
        _tell("ended", code)

    def _remove_shared_memory(self) -> None:
        """A server that was killed leaves a small segment behind, whose number is in the file it leaves behind too."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"{self._directory}/data/postmaster.pid", encoding="utf-8") as file:
                number = int(file.read().split("\n")[6].split()[1])
            if self._libc is not None:
                self._libc.shmctl(number, _IPC_RMID, None)

    def _end(self) -> None:
        signal.set_wakeup_fd(-1)
        if self._server is not None:
            # Nothing has to be kept. (Where what it leaves running does not become ours, it has to end that itself.)
            self._server.send_signal(signal.SIGKILL if _IS_LINUX else signal.SIGQUIT)
            try:
                self._server.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
            self._look()
        shutil.rmtree(self._directory, ignore_errors=True)


def _tell(word: str, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{word} {number}\n".encode())


def _children() -> list[int]:
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            # The name of the program stands in parentheses and may hold anything.
            if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(name))
    return found


if __name__ == "__main__":
    Guard(**json.loads(sys.argv[1])).run()
