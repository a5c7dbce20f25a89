"""Hazard: a damaged file from which less is rescued than could be, or something that never was.

What stands on which page SQLite itself tells (`dbstat`), before the pages are damaged. The long form damages a
thousand files and prints what became of their entries:

    pytest --hypothesis-profile=long -n 0 -s tests/test_salvage.py
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import pytest
from hypothesis import settings

from mycelia_storage import (
    ConfigError,
    CopyProgress,
    Entry,
    LostEntry,
    NotAStorageFileError,
    SalvageReport,
    SchemaVersionError,
    Storage,
    StorageBusyError,
    open_storage,
    salvage,
)
from mycelia_storage.engines.sqlite import raw_pages, writer
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"
PAGE = 4096
IS_LONG = settings.get_current_profile_name() == "long"
ROUNDS = 1000 if IS_LONG else 24

Name = tuple[str, str]


class Made(NamedTuple):
    """A file, what it holds, and where."""

    path: Path
    entries: dict[Name, Entry[Any]]
    pages_of: dict[Name, frozenset[int]]
    trees: dict[str, list[int]]
    rests: frozenset[int]
    size: int


def everything(store: Storage) -> dict[Name, Entry[Any]]:
    return {(name, entry.key): entry for name in store.list_namespaces() for entry in store.scan(namespace=name)}


def fill(store: Storage) -> None:
    chosen = random.Random(7)
    for part in range(6):
        store.set_many(
            {
                f"user:{number:05}": {"n": number, "text": f"user {number} " * chosen.randrange(1, 40)}
                for number in range(part, 3000, 6)
            },
            metadata={"part": part},
        )
    store.set_many({f"long:{number}": f"{number} " * chosen.randrange(1500, 9000) for number in range(60)})
    store.set_many({f"s{number:04}": number for number in range(600)}, namespace="séances", ttl=1000)
    store.set_many({f"deleted:{number:05}": {"n": -number, "text": "gone " * 40} for number in range(1, 800)})
    store.create_namespace("empty", metadata={"note": "nothing here"})
    store.create_index("n", unique=True)
    store.create_index("$updated_at", namespace=None, name="time")
    store.delete_many([f"deleted:{number:05}" for number in range(1, 800)])
    for number in range(0, 3000, 11):
        store.merge(f"user:{number:05}", {"more": "x" * chosen.randrange(300)})


def look(path: Path) -> tuple[dict[Name, frozenset[int]], dict[str, list[int]]]:
    """Which pages each entry stands on, and which pages each tree has, as SQLite tells."""
    connection = apsw.Connection(str(path))
    rows: list[Any] = connection.execute(
        "SELECT namespace, key FROM storage_entries NOT INDEXED ORDER BY id"
    ).fetchall()
    trees: dict[str, list[int]] = {}
    leaves: dict[str, tuple[int, int]] = {}
    longer: dict[tuple[str, int], list[int]] = {}
    statement = "SELECT name, path, pageno, pagetype, ncell FROM dbstat ORDER BY name, path"
    for name, place, page, kind, cells in connection.execute(statement).fetchall():
        trees.setdefault(str(name), []).append(int(str(page)))
        if name == "storage_entries" and kind == "leaf":
            leaves[str(place)] = int(str(page)), int(str(cells))
        elif name == "storage_entries" and kind == "overflow":
            above, _, number = str(place).partition("+")[0].rpartition("/")
            longer.setdefault((above + "/", int(number, 16)), []).append(int(str(page)))
    connection.close()
    names = iter(rows)
    pages_of: dict[Name, frozenset[int]] = {}
    for leaf, (first, size) in leaves.items():
        for cell in range(size):
            pages_of[next(names)] = frozenset([first, *longer.get((leaf, cell), [])])
    assert next(names, None) is None
    return pages_of, trees


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "store.db"
    with open_storage(path, clock=FakeClock()) as store:
        fill(store)
        entries = everything(store)
    pages_of, trees = look(path)
    assert pages_of.keys() == entries.keys()
    rests = frozenset(page for places in pages_of.values() if len(places) > 1 for page in places)
    return Made(path, entries, pages_of, trees, rests, path.stat().st_size // PAGE)


def overwrite(path: Path, page: int, data: bytes, offset: int = 0) -> None:
    with open(path, "r+b") as file:
        file.seek((page - 1) * PAGE + offset)
        file.write(data)


def rescued(report: SalvageReport, target: Path, entries: int) -> dict[Name, Entry[Any]]:
    """What is in a new file, which has to be a sound one."""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with open_storage(target, clock=FakeClock()) as store:
        found = store.check()
        there = everything(store)
    assert report.entries == len(there) == found.entries
    assert (report.namespaces, report.indexes) == (found.namespaces, found.indexes)
    assert len(there) <= entries
    return there


def copy_of(made: Made, tmp_path: Path) -> Path:
    path = tmp_path / "damaged.db"
    shutil.copyfile(made.path, path)
    return path


# ---- what is whole


def test_everything_of_a_sound_file_is_there(made: Made, tmp_path: Path) -> None:
    before = made.path.read_bytes()
    told: list[CopyProgress] = []
    report = salvage(made.path, tmp_path / "new.db", progress=told.append)
    assert report.is_complete
    assert report.damaged_pages == 0
    assert rescued(report, tmp_path / "new.db", len(made.entries)) == made.entries
    with (
        open_storage(made.path, clock=FakeClock(), read_only=True) as old,
        open_storage(tmp_path / "new.db", clock=FakeClock()) as new,
    ):
        assert new.list_indexes() == old.list_indexes()
        for name in old.list_namespaces():
            assert new.namespace_info(name) == old.namespace_info(name)
        assert new.set("user:00011", 1) > made.entries["default", "user:00011"].version
    assert made.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"new.db"}
    assert {progress.step for progress in told} == {"copying", "checking"}


def test_a_cancelled_salvage_leaves_nothing(made: Made, tmp_path: Path) -> None:
    class CancelledError(Exception):
        pass

    def cancel(progress: CopyProgress) -> None:
        if progress.done or progress.step == step:
            raise CancelledError

    for step in ("copying", "checking"):  # noqa: B007  `cancel` reads it
        with pytest.raises(CancelledError):
            salvage(made.path, tmp_path / "new.db", progress=cancel)
        assert list(tmp_path.iterdir()) == []


def test_what_has_not_been_written_back_from_the_wal_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AHEAD_PAGES", "WAL_PAGES"):
        monkeypatch.setattr(writer, name, 10_000)
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        fill(store)
        store.optimize()
        store.set_many({f"late:{number}": {"n": 10_000 + number, "text": "late " * 300} for number in range(500)})
        store.delete("user:00000")
        store.set("user:00001", "changed")
        entries = everything(store)
        before = [(path.parent / name).read_bytes() for name in ("store.db", "store.db-wal")]
        report = salvage(path, tmp_path / "new.db")
        assert report.is_complete
        with open_storage(tmp_path / "new.db") as new:
            assert everything(new) == entries
        assert [(path.parent / name).read_bytes() for name in ("store.db", "store.db-wal")] == before

        store.set("late", 1)  # and a -wal that ends in the middle of it
        with open(f"{path}-wal", "rb") as file:
            data = file.read()
        torn = tmp_path / "torn"
        torn.mkdir()
        shutil.copyfile(path, torn / "store.db")
        (torn / "store.db-wal").write_bytes(data[:-100])
        salvage(torn / "store.db", torn / "new.db")
        with open_storage(torn / "new.db") as new:
            assert everything(new) == entries


@pytest.mark.parametrize("flipped", [False, True])
def test_only_what_was_committed_to_this_wal_counts(tmp_path: Path, flipped: bool) -> None:
    """Behind its end stand pages as they were long ago, and a transaction that was damaged on its way is none."""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set_many({f"k{number:03}": "old " * 200 for number in range(300)})
        store.set_many({f"k{number:03}": "older " * 100 for number in range(300)})
        connection = apsw.Connection(str(path))
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        size, done = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        assert size == done > 20
        connection.close()
        entries = everything(store)
        store.set("k299", "newest")
        if not flipped:
            entries = everything(store)
        else:
            shutil.copyfile(path, tmp_path / "flipped.db")
            shutil.copyfile(f"{path}-wal", tmp_path / "flipped.db-wal")
            path = tmp_path / "flipped.db"
            with open(f"{path}-wal", "r+b") as file:
                file.seek(32 + 24 + 3000)
                file.write(b"\xff\xff")
        salvage(path, tmp_path / "new.db")
        with open_storage(tmp_path / "new.db") as new:
            assert everything(new) == entries


@pytest.mark.parametrize("is_torn", [False, True], ids=["whole", "with an end that was never written"])
def test_a_transaction_that_was_never_committed_is_undone_by_its_journal(tmp_path: Path, is_torn: bool) -> None:
    path, killed = tmp_path / "store.db", tmp_path / "killed"
    with open_storage(path, wal_mode=False, synchronous="OFF") as store:
        fill(store)
        entries = everything(store)
    killed.mkdir()
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute(
        "PRAGMA cache_size=5; BEGIN; UPDATE storage_entries SET metadata = '{\"half\":1}' WHERE id < 300"
    )
    connection.execute("DELETE FROM storage_entries WHERE key < 'user:00050'")
    connection.execute(
        "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
        "INSERT INTO storage_entries (namespace, key, version, created_at, updated_at, value) "
        "SELECT 'default', 'never ' || i, 1, 1, 1, printf('\"%.500c\"', 'n') FROM n"
    )
    for end in ("", "-journal"):
        shutil.copyfile(f"{path}{end}", killed / f"store.db{end}")
    connection.execute("ROLLBACK")
    connection.close()
    assert (killed / "store.db").stat().st_size > path.stat().st_size
    if is_torn:
        pages = range(1, path.stat().st_size // PAGE + 1)
        with open(killed / "store.db-journal", "ab") as file:
            file.writelines(page.to_bytes(4, "big") + bytes(PAGE + 4) for page in pages)
    report = salvage(killed / "store.db", killed / "new.db")
    assert report.is_complete
    with open_storage(killed / "new.db") as new:
        assert everything(new) == entries


def test_a_file_whose_wal_is_gone_has_what_was_written_back(tmp_path: Path) -> None:
    path, alone = tmp_path / "store.db", tmp_path / "alone.db"
    with open_storage(path) as store:
        fill(store)
        entries = everything(store)
        store.optimize()
        store.set_many({f"late:{number}": number for number in range(500)})
        shutil.copyfile(path, alone)
    salvage(alone, tmp_path / "new.db")
    with open_storage(tmp_path / "new.db") as new:
        assert everything(new) == entries


def test_rows_that_version_2_refuses_are_named_and_the_others_copied(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    shutil.copyfile(ORIGINAL, path)
    connection = apsw.Connection(str(path))
    count = connection.execute("SELECT count(*) FROM storage_entries").get
    add = "INSERT INTO storage_entries (namespace, key, value, created_at, updated_at) VALUES ({}, {}, {}, 1, 2)"
    connection.execute(add.format("'default'", "'no json'", "'{'"))
    connection.execute(add.format("'default'", "''", "'1'"))
    connection.execute(add.format("'a*b'", "'k'", "'1'"))
    connection.execute(add.format("'default'", "x'6b'", "'1'"))
    connection.close()
    with pytest.raises(SchemaVersionError):
        open_storage(path)
    report = salvage(path, tmp_path / "new.db")
    assert report.entries == count
    assert report.lost == 4
    reasons = {(lost.namespace, lost.key): lost.reason for lost in report.lost_entries}
    assert reasons["default", "no json"] == "the value: not JSON"
    assert reasons.keys() == {("default", "no json"), ("default", ""), ("a*b", "k"), ("default", "b'k'")}
    shutil.copyfile(ORIGINAL, tmp_path / "sound.db")
    with open_storage(tmp_path / "sound.db") as migrated, open_storage(tmp_path / "new.db") as new:
        assert everything(new) == everything(migrated)
        assert new.list_namespaces() == migrated.list_namespaces()


# ---- what is damaged


def noise(chosen: random.Random) -> bytes:
    return chosen.randbytes(PAGE)


def damage(path: Path, made: Made, chosen: random.Random) -> set[int]:
    """Damage some pages, and say which."""
    kind = chosen.choice(["noise", "zeros", "sector", "text", "other page", "mixed"])
    tree = chosen.choice([None, None, "storage_entries", "sqlite_autoindex_storage_entries_1"])
    among = made.trees[tree] if tree else range(2, made.size + 1)
    if kind == "other page":
        # What stands between the ends of a long text looks like that of another: only checksums tell.
        among = [page for page in among if page not in made.rests]
    damaged = set(chosen.sample(among, min(len(among), chosen.choice([1, 1, 2, 4, 8, 16]))))
    if tree == "storage_entries" and chosen.random() < 0.3:
        damaged.add(made.trees[tree][0])  # its root
    for page in damaged:
        how = chosen.choice(["noise", "zeros", "sector", "text"]) if kind == "mixed" else kind
        if how == "noise":
            overwrite(path, page, noise(chosen))
        elif how == "zeros":
            overwrite(path, page, bytes(PAGE))
        elif how == "sector":
            overwrite(path, page, chosen.choice([noise(chosen), bytes(PAGE)])[:512], chosen.randrange(8) * 512)
        elif how == "text":
            overwrite(path, page, b"\n" + b"lorem ipsum " * 341)
        else:
            other = chosen.choice(among)
            overwrite(path, page, made.path.read_bytes()[(other - 1) * PAGE : other * PAGE])
    return damaged


def check_rescue(made: Made, damaged: set[int], report: SalvageReport, there: dict[Name, Entry[Any]]) -> Counter[str]:
    """The four promises. Gives what became of the entries."""
    intact = {name for name, places in made.pages_of.items() if not places & damaged}
    assert intact <= there.keys(), sorted(intact - there.keys())[:5]
    assert not {name for name, entry in there.items() if made.entries.get(name) != entry}
    missing = made.entries.keys() - there.keys()
    named = {(lost.namespace, lost.key) for lost in report.lost_entries}
    assert not named & there.keys()
    # A page of which a part was overwritten can hold what looks like a key and never was one.
    made_up = named - missing
    assert len(made_up) <= len(damaged)
    assert report.lost == len(named) or len(named) == 1000
    keys = set(made.trees["sqlite_autoindex_storage_entries_1"])
    if not keys & damaged and report.lost <= 1000:
        assert missing <= named
    if missing:
        assert not report.is_complete
    return Counter(
        entries=len(made.entries), there=len(there), named=report.lost - len(made_up), unnamed=len(missing - named),
        made_up=len(made_up),
        pages=len(damaged), reported_pages=report.damaged_pages,
    )  # fmt: skip


def test_random_damage_takes_no_more_than_what_stood_there(made: Made, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    source, target = tmp_path / "damaged.db", tmp_path / "new.db"
    for seed in range(ROUNDS):
        chosen = random.Random(seed)
        shutil.copyfile(made.path, source)
        damaged = damage(source, made, chosen)
        before = source.read_bytes()
        report = salvage(source, target)
        try:
            total += check_rescue(made, damaged, report, rescued(report, target, len(made.entries)))
        except AssertionError as error:
            error.add_note(f"seed {seed}, pages {sorted(damaged)}: {report.problems}")
            raise
        assert source.read_bytes() == before
        target.unlink()
        total["files"] += 1
    if IS_LONG:
        print("\n" + ", ".join(f"{count:,} {name}" for name, count in total.items()))
    assert total["there"] > total["entries"] * 0.9


@pytest.mark.parametrize("size", [0.9, 0.5, 0.1])
def test_a_truncated_file_has_what_stands_before_its_end(made: Made, tmp_path: Path, size: float) -> None:
    path = copy_of(made, tmp_path)
    kept = int(made.size * size)
    with open(path, "r+b") as file:
        file.truncate(kept * PAGE + 100)
    report = salvage(path, tmp_path / "new.db")
    there = rescued(report, tmp_path / "new.db", len(made.entries))
    gone = set(range(kept + 1, made.size + 1))
    intact = {name for name, places in made.pages_of.items() if not places & gone}
    # The list of free pages may lie behind the end, so that orphans cannot be trusted; what a root leads to can.
    root_is_there = made.trees["storage_entries"][0] <= kept
    assert root_is_there
    assert intact <= there.keys()
    assert not {name for name, entry in there.items() if made.entries.get(name) != entry}


@pytest.mark.parametrize("what", ["zeros", "noise"])
def test_a_lost_header_loses_no_entry(made: Made, tmp_path: Path, what: str) -> None:
    path = copy_of(made, tmp_path)
    overwrite(path, 1, bytes(100) if what == "zeros" else random.Random(1).randbytes(100))
    report = salvage(path, tmp_path / "new.db")
    assert not report.is_complete
    assert "the header of the file is damaged" in report.problems
    assert rescued(report, tmp_path / "new.db", len(made.entries)) == made.entries


@pytest.mark.parametrize("data", [bytes(PAGE), random.Random(1).randbytes(PAGE)])
def test_a_lost_first_page_loses_no_entry(made: Made, tmp_path: Path, data: bytes) -> None:
    path = copy_of(made, tmp_path)
    overwrite(path, 1, data)
    report = salvage(path, tmp_path / "new.db")
    assert any("old state" in problem for problem in report.problems)
    there = rescued(report, tmp_path / "new.db", len(made.entries) + 800)
    assert not {name for name in made.entries if made.entries[name] != there.get(name)}
    with open_storage(tmp_path / "new.db", clock=FakeClock()) as store:
        assert [info.name for info in store.list_indexes()] == ["default: n (unique)", "time"]


@pytest.mark.parametrize("page_size", [512, 1024, 8192, 65536])
def test_a_lost_header_with_pages_of_another_size(made: Made, tmp_path: Path, page_size: int) -> None:
    path = copy_of(made, tmp_path)
    connection = apsw.Connection(str(path))
    connection.execute(f"PRAGMA journal_mode=delete; PRAGMA page_size={page_size}; VACUUM")
    connection.close()
    for data in (b"", bytes(100)):
        overwrite(path, 1, data)
        target = tmp_path / f"new{len(data)}.db"
        report = salvage(path, target)
        assert rescued(report, target, len(made.entries)) == made.entries


def test_deleted_entries_do_not_come_back_where_the_list_of_free_pages_is_damaged(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, tmp_path)
    assert path.read_bytes().count(b"deleted:") > 100  # on free pages, as they were
    lose_free_pages(path)
    report = salvage(path, tmp_path / "new.db")
    assert not report.is_complete
    assert rescued(report, tmp_path / "new.db", len(made.entries)) == made.entries


def test_an_older_state_of_an_entry_does_not_win(tmp_path: Path) -> None:
    """A free page has it as it was, and the first page is lost, so that nobody knows which pages are free."""
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set_many({f"k{number:04}": {"old": "x" * 300} for number in range(500)})
        store.set_many({f"k{number:04}": {"new": number} for number in range(500)})
        store.set_many({f"m{number:04}": {"n": number} for number in range(500)})
        entries = everything(store)
    overwrite(path, 1, bytes(PAGE))
    salvage(path, tmp_path / "new.db")
    with open_storage(tmp_path / "new.db") as new:
        assert everything(new) == entries


def test_namespaces_whose_registration_is_lost_are_those_of_the_entries(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, tmp_path)
    for page in made.trees["storage_namespaces"]:
        overwrite(path, page, bytes(PAGE))
    report = salvage(path, tmp_path / "new.db")
    assert report.namespaces == 2
    assert rescued(report, tmp_path / "new.db", len(made.entries)) == made.entries


def test_a_damaged_key_is_not_believed(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, tmp_path)
    data = path.read_bytes()
    (page,) = made.pages_of["default", "user:00777"]
    place = data.index(b"user:00777", (page - 1) * PAGE)
    overwrite(path, page, b"user:0077X", place - (page - 1) * PAGE)
    report = salvage(path, tmp_path / "new.db")
    there = rescued(report, tmp_path / "new.db", len(made.entries) + 1)
    assert made.entries.keys() - there.keys() == {("default", "user:00777")}
    assert there.keys() <= made.entries.keys()
    assert {lost.key for lost in report.lost_entries} == {"user:00777", "user:0077X"}


def lose_free_pages(path: Path) -> None:
    """Damage the list of them."""
    trunk = int.from_bytes(path.read_bytes()[32:36], "big")
    assert trunk
    overwrite(path, trunk, bytes(PAGE))


@pytest.mark.parametrize(
    ("which", "reason"), [(min, "a part of its value cannot be read"), (max, "the value: not JSON")]
)
def test_a_long_value_of_which_a_page_is_lost_is_named(
    made: Made, tmp_path: Path, which: Callable[[frozenset[int]], int], reason: str
) -> None:
    """One on the way to the others, and the last one, which ends as it should."""
    path = copy_of(made, tmp_path)
    name = ("default", "long:7")
    shared = {page for other, places in made.pages_of.items() if other != name for page in places}
    overwrite(path, which(made.pages_of[name] - shared), bytes(PAGE))
    # No index tells of it: what does is the part of it that stands in its own page.
    for tree, pages in made.trees.items():
        if tree.startswith(("sqlite_autoindex_storage_entries", "storage_index_")):
            for page in pages:
                overwrite(path, page, bytes(PAGE))
    report = salvage(path, tmp_path / "new.db")
    assert report.lost_entries == (LostEntry(*name, reason),)
    assert len(rescued(report, tmp_path / "new.db", len(made.entries))) == len(made.entries) - 1


def test_a_sector_that_cannot_be_read_is_a_damaged_page(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = max(made.trees["storage_entries"])
    read = apsw.VFSFile.xRead

    class Disk:
        def __init__(self, *arguments: Any) -> None:
            self._file = apsw.VFSFile(*arguments)

        def xRead(self, size: int, place: int) -> bytes:  # noqa: N802
            if place <= (bad - 1) * PAGE < place + size:
                raise apsw.IOError("EIO")
            return read(self._file, size, place)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    class Driver:
        VFSFile = Disk

        def __getattr__(self, name: str) -> Any:
            return getattr(apsw, name)

    monkeypatch.setattr(raw_pages, "apsw", Driver())
    report = salvage(made.path, tmp_path / "new.db")
    assert any("cannot be read from the disk" in problem for problem in report.problems)
    check_rescue(made, {bad}, report, rescued(report, tmp_path / "new.db", len(made.entries)))


def test_a_flipped_bit_in_a_file_with_checksums_is_never_believed(tmp_path: Path) -> None:
    path, damaged = tmp_path / "store.db", tmp_path / "damaged.db"
    with open_storage(path, clock=FakeClock(), checksums=True) as store:
        store.set_many({f"k{number:04}": {"n": number, "text": "x" * 200} for number in range(500)})
        entries = everything(store)
    chosen = random.Random(5)
    for number in range(12):
        shutil.copyfile(path, damaged)
        place = chosen.randrange(2 * PAGE, path.stat().st_size)
        (byte,) = path.read_bytes()[place : place + 1]
        overwrite(damaged, 1, bytes([byte ^ 1 << chosen.randrange(8)]), place)
        target = tmp_path / f"new{number}.db"
        report = salvage(damaged, target)
        assert any("does not fit its checksum" in problem for problem in report.problems)
        there = rescued(report, target, len(entries))
        assert not {name for name, entry in there.items() if entries[name] != entry}
        assert len(there) + report.lost == len(entries)
        assert target.read_bytes()[20] == 8  # and it has checksums itself


def test_indexes_that_cannot_be_made_again_are_named(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with open_storage(path) as store:
        store.set_many({"a": {"n": 1}, "b": {"n": 2}})
        store.create_index("n", unique=True, name="unique")
        store.create_index("m", name="damaged")
        store.create_index("o", name="sound")
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'UNIQUE INDEX', 'INDEX') WHERE sql LIKE '%UNIQUE IN%'"
    )
    connection.close()
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE storage_entries SET value = '{\"n\":1}'")
    connection.execute("UPDATE storage_indexes SET fields = '[\"' WHERE name = 'damaged'")
    connection.close()
    report = salvage(path, tmp_path / "new.db")
    assert (report.entries, report.indexes) == (2, 1)
    assert not report.is_complete
    unique, damaged = sorted(report.lost_indexes, reverse=True)
    assert "'unique'" in unique
    assert "same value" in unique
    assert damaged == "'damaged': its definition is damaged"


# ---- what is refused


def foreign(path: Path) -> None:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE cars (name TEXT)")
    connection.execute("INSERT INTO cars VALUES ('a')")
    connection.close()


def marked(path: Path) -> None:
    foreign(path)
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA application_id=7")
    connection.close()


def newer(path: Path) -> None:
    open_storage(path).close()
    connection = apsw.Connection(str(path))
    connection.execute("INSERT INTO schema_version VALUES (3, 0)")
    connection.close()


def with_a_pipe(path: Path) -> None:
    shutil.copyfile(ORIGINAL, path)
    os.mkfifo(f"{path}-wal")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (foreign, NotAStorageFileError),
        (marked, NotAStorageFileError),
        (newer, SchemaVersionError),
        (lambda path: path.write_bytes(b""), NotAStorageFileError),
        (lambda path: path.write_bytes(b"hello " * 1000), NotAStorageFileError),
        (lambda path: path.write_bytes(bytes(100_000)), NotAStorageFileError),
        (lambda path: path.write_bytes(random.Random(3).randbytes(100_000)), NotAStorageFileError),
        (lambda path: path.symlink_to(ORIGINAL), ConfigError),
        (lambda path: os.mkfifo(path), ConfigError),
        (lambda path: path.mkdir(), ConfigError),
        (with_a_pipe, ConfigError),
        (lambda path: None, ConfigError),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], object], error: type[Exception]
) -> None:
    path = tmp_path / "other.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    there = {found.name for found in tmp_path.iterdir()}
    with pytest.raises(error):
        salvage(path, tmp_path / "new.db")
    assert {found.name for found in tmp_path.iterdir()} == there
    assert before == (path.read_bytes() if path.is_file() else None)


def test_a_target_that_is_there_is_kept(made: Made, tmp_path: Path) -> None:
    (tmp_path / "new.db").write_text("mine")
    for target in (tmp_path / "new.db", made.path, Path(f"{made.path}-wal")):
        with pytest.raises(ConfigError):
            salvage(made.path, target)
    assert (tmp_path / "new.db").read_text() == "mine"


def test_a_file_that_is_written_meanwhile_is_refused(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, tmp_path)

    def write(progress: CopyProgress) -> None:
        overwrite(path, 2, b"x")

    with pytest.raises(StorageBusyError):
        salvage(path, tmp_path / "new.db", progress=write)
    assert {found.name for found in tmp_path.iterdir()} == {"damaged.db"}


def test_messages_name_no_values(made: Made, tmp_path: Path) -> None:
    path = copy_of(made, tmp_path)
    for page in made.trees["storage_entries"][1::5]:
        overwrite(path, page, b"\xff" * 300, 2000)
    report = salvage(path, tmp_path / "new.db")
    assert report.lost
    assert not re.search(r"user \d", str(report))
