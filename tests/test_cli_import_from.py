"""The verb `import-from`: what it prints, how it exits, and that a dry run leaves no store behind."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pytest
from foreign_files import state
from terminals import on_terminal

from mycelia_storage import open_storage
from mycelia_storage.cli import main

if TYPE_CHECKING:
    from pathlib import Path


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run: TypeAlias = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command, on a store that is not there yet."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = main(["--store", str(tmp_path / "store.db"), "import-from", *map(str, arguments)])
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A file as TinyDB writes it, with one document that no store takes."""
    path = tmp_path / "people.json"
    path.write_text(json.dumps({"_default": {"1": {"name": "Ada"}}, "cats": {"1": {"n": 2**64}, "2": {"n": 2}}}))
    return path


def stored(tmp_path: Path) -> dict[str, dict[str, Any]]:
    with open_storage(tmp_path / "store.db") as store:
        names = store.list_namespaces()
        return {name: {entry.key: entry.value for entry in store.scan(namespace=name)} for name in names}


def test_what_was_taken_over_is_told(here: Run, people: Path, tmp_path: Path) -> None:
    done = here("tinydb", people, "--on-error", "skip")
    assert done.code == 1
    assert done.err == "mycelia-storage: 1 bad entry was left out\n"
    told = done.json
    assert told.pop("seconds") >= 0
    assert told == {
        "path": str(people),
        "kind": "tinydb",
        "total": None,
        "read": 3,
        "written": 2,
        "replaced": 0,
        "unchanged": 0,
        "skipped": 0,
        "expired": 0,
        "failed": 1,
        "namespaces": ["default", "cats"],
        "problems": [
            {"namespace": "cats", "key": "1", "reason": "$.n: an integer beyond 64 bits: convert it to str"},
        ],
        "notes": [],
        "dry_run": False,
    }
    assert stored(tmp_path) == {"default": {"1": {"name": "Ada"}}, "cats": {"2": {"n": 2}}}


def test_a_bad_entry_stops_unless_told_otherwise(here: Run, people: Path, tmp_path: Path) -> None:
    done = here("tinydb", people)
    assert done.code == 1
    assert done.err.startswith("mycelia-storage: '1': $.n: an integer beyond 64 bits")
    assert "stopped at entry 2; 1 before it are stored" in done.err or "0 before it" in done.err
    assert done.json["failed"] == 1
    assert stored(tmp_path).get("cats") is None


def test_a_dry_run_makes_no_store_and_changes_none(here: Run, people: Path, tmp_path: Path) -> None:
    before = state(tmp_path)
    done = here("tinydb", people, "--dry-run", "--on-error", "skip")
    assert (done.code, done.json["written"], done.json["failed"], done.json["dry_run"]) == (1, 2, 1, True)
    assert state(tmp_path) == before
    here("tinydb", people, "--on-error", "skip")
    with open_storage(tmp_path / "store.db") as store:
        store.set("2", "mine", namespace="cats")
        entries = store.get_status().entries
    done = here("tinydb", people, "--dry-run", "--on-error", "skip", "--existing", "overwrite")
    assert (done.json["written"], done.json["replaced"], done.json["unchanged"]) == (1, 1, 1)
    with open_storage(tmp_path / "store.db") as store:
        assert store.get("2", namespace="cats") == "mine"
        assert store.get_status().entries == entries


def test_existing_entries_are_refused_skipped_or_replaced(here: Run, people: Path, tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("1", "mine")
    arguments = ("tinydb", people, "--table", "_default", "--on-error", "skip")
    done = here(*arguments)
    assert (done.code, done.json["failed"]) == (1, 1)
    done = here(*arguments, "--existing", "skip")
    assert (done.code, done.json["skipped"], stored(tmp_path)["default"]) == (0, 1, {"1": "mine"})
    done = here(*arguments, "--existing", "overwrite")
    assert (done.code, done.json["replaced"], stored(tmp_path)["default"]) == (0, 1, {"1": {"name": "Ada"}})
    done = here(*arguments)
    assert (done.code, done.json["unchanged"]) == (0, 1)


def test_where_it_goes_and_what_of_it(here: Run, people: Path, tmp_path: Path) -> None:
    assert here("tinydb", people, "--table", "_default", "-n", "people", "--batch-size", "1").code == 0
    assert stored(tmp_path)["people"] == {"1": {"name": "Ada"}}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("tinydb", "missing.json"), 2),
        (("diskcache", "missing"), 2),
        (("shelve", "missing"), 2),
        (("sqlitedict", "people.json"), 3),
        (("tinydb", "people.json", "--namespace", "x"), 2),
        (("tinydb", "people.json", "--existing", "keep"), 2),
        (("redis", "people.json"), 2),
        (("diskcache", ".", "--table", "x"), 2),
    ],
)
def test_what_cannot_be_makes_no_store(
    here: Run, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(*arguments)
    assert (done.code, done.out) == (code, "")
    assert done.err.count("\n") == 1
    assert os.listdir(tmp_path) == ["people.json"]


def test_a_person_is_told_in_lines(people: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mycelia_storage.cli", "import-from", "tinydb", str(people), "--on-error", "skip"]
    code, text = on_terminal(command, environment={"MYCELIA_STORAGE": "store.db"}, cwd=tmp_path)
    assert code == 1, text
    assert "'1' in namespace 'cats': $.n: an integer beyond 64 bits" in text
    assert "2 written; 1 bad" in text
