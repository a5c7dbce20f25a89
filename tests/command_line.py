"""What a command of `mycelia-storage` gave, and the fixtures of tests that run it: in this process, on one store.

The fixtures are imported by `conftest.py`. Files of tests that run it in other ways have fixtures of their own with
these names.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from mycelia_storage.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAM = [sys.executable, "-m", "mycelia_storage.cli"]


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def one_line(result: Result) -> str:
    """The error, which has to be one line and no traceback."""
    assert result.err.startswith("mycelia-storage: ")
    assert result.err.count("\n") == 1
    assert result.err.endswith("\n")
    assert "Traceback" not in result.err
    return result.err


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be made, in a directory of its own that nobody else may look into."""
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    return folder / "store.db"


@pytest.fixture
def run(path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., Result]:
    """A command on the store at `path`. Whatever it reports is lines of its own, and no traceback."""

    def call(*arguments: str) -> Result:
        capfdbinary.readouterr()
        code = main(["--store", str(path), *arguments])
        out, err = capfdbinary.readouterr()
        assert all(line.startswith(b"mycelia-storage: ") for line in err.splitlines())
        return Result(code, out, err.decode())

    return call
