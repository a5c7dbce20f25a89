"""Hazard: a path leads where it must not, or what lies beside a file makes SQLite write or wait elsewhere.

Whoever may write into a store's directory can always put another file in its place. These tests are about him who has
prepared a directory, and about him who changes it while a store is being opened.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mycelia_storage import ConfigError, StorageError, StorageIOError, open_storage
from mycelia_storage.engines.sqlite import engine

CANARY = b"not yours" * 1000
BESIDE = ("-wal", "-shm", "-journal")


def state_of(directory: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in directory.iterdir() if found.is_file()}


def make_store(path: Path, **options: Any) -> None:
    with open_storage(path, **options) as store:
        store.set("a", 1)


def put_link(place: Path, elsewhere: Path) -> None:
    (elsewhere / "file").write_bytes(CANARY)
    place.symlink_to(elsewhere / "file")


def put_dangling_link(place: Path, elsewhere: Path) -> None:
    place.symlink_to(elsewhere / "missing")


def put_device(place: Path, _: Path) -> None:
    place.symlink_to("/dev/zero")


def put_second_name(place: Path, elsewhere: Path) -> None:
    (elsewhere / "file").write_bytes(CANARY)
    place.hardlink_to(elsewhere / "file")


def put_pipe(place: Path, _: Path) -> None:
    os.mkfifo(place)


def put_directory(place: Path, _: Path) -> None:
    place.mkdir()


PLANTS = {
    "a link": put_link,
    "a link to nothing": put_dangling_link,
    "a device": put_device,
    "a second name": put_second_name,
    "a pipe": put_pipe,
    "a directory": put_directory,
}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    place = tmp_path / "elsewhere"
    place.mkdir()
    return place


@pytest.mark.parametrize("end", BESIDE)
@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("is_new", [False, True], ids=["a store", "a new store"])
def test_what_was_planted_beside_a_file_is_refused(
    tmp_path: Path, elsewhere: Path, plant: str, end: str, is_new: bool
) -> None:
    path = tmp_path / "place" / "store.db"
    path.parent.mkdir()
    if not is_new:
        make_store(path)
    PLANTS[plant](Path(f"{path}{end}"), elsewhere)
    before = state_of(path.parent), state_of(elsewhere)
    for options in ({}, {"wal_mode": False}, *([] if is_new else [{"read_only": True}])):
        with pytest.raises(ConfigError, match=end):
            open_storage(path, **options)  # type: ignore[arg-type]
    assert (state_of(path.parent), state_of(elsewhere)) == before


@pytest.mark.parametrize("end", BESIDE)
@pytest.mark.parametrize("plant", PLANTS)
def test_what_was_planted_beside_a_backup_is_not_restored(
    tmp_path: Path, elsewhere: Path, plant: str, end: str
) -> None:
    path = tmp_path / "place" / "backup.db"
    path.parent.mkdir()
    make_store(path)
    PLANTS[plant](Path(f"{path}{end}"), elsewhere)
    before = state_of(path.parent), state_of(elsewhere)
    with open_storage(tmp_path / "store.db") as store:
        store.set("mine", 1)
        with pytest.raises(ConfigError, match=end):
            store.restore(path)
        assert store.list_keys() == ["mine"]
    assert (state_of(path.parent), state_of(elsewhere)) == before


def test_a_file_with_two_names_is_refused_by_both(tmp_path: Path) -> None:
    """Each name would have a -wal of its own, and the one's pages overwrite the other's."""
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    make_store(one)
    other.hardlink_to(one)
    before = state_of(tmp_path)
    for path in (one, other):
        for read_only in (False, True):
            with pytest.raises(ConfigError, match="2 names"):
                open_storage(path, read_only=read_only)
    assert state_of(tmp_path) == before
    other.unlink()
    with open_storage(one) as store:
        assert store.get("a") == 1


@pytest.mark.parametrize("plant", ["a pipe", "a device", "a directory"])
def test_a_target_that_is_no_file_is_refused(tmp_path: Path, elsewhere: Path, plant: str) -> None:
    PLANTS[plant](tmp_path / "store.db", elsewhere)
    for read_only in (False, True):
        with pytest.raises(ConfigError, match="regular file|directory"):
            open_storage(tmp_path / "store.db", read_only=read_only)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").symlink_to(tmp_path / "store.db")
    with pytest.raises(ConfigError):
        open_storage(tmp_path / "store.db")


def test_the_log_of_another_store_is_damage_or_leaves_this_one_whole(tmp_path: Path) -> None:
    """SQLite cannot tell whose a -wal is; what it makes of the pages has to be seen."""
    path, other = tmp_path / "store.db", tmp_path / "other.db"
    with open_storage(path) as store:
        store.set_many({f"mine{number}": {"n": number} for number in range(500)})
    killed = f"""
        import os
        from mycelia_storage import open_storage
        store = open_storage({str(other)!r})
        store.set_many({{f"theirs{{number}}": {{"n": number}} for number in range(50)}})
        store.create_index("n")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(killed)], check=True)
    shutil.copyfile(f"{other}-wal", f"{path}-wal")
    before = path.read_bytes()
    try:
        with open_storage(path) as store:
            found = set(store.list_keys())
            assert found in ({f"mine{number}" for number in range(500)}, {f"theirs{number}" for number in range(50)})
    except StorageError:
        assert path.read_bytes() == before


# ---- changed while it is opened


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """`base/inside/x.db` is a store, and so is `outside/x.db`."""
    for name in ("base/inside", "outside"):
        (tmp_path / name).mkdir(parents=True)
        make_store(tmp_path / name / "x.db")
    return tmp_path / "base"


def swap_for_link(base: Path) -> None:
    (base / "inside").rename(base / "was inside")
    (base / "inside").symlink_to(base.parent / "outside")


def swap_back(base: Path) -> None:
    (base / "inside").unlink()
    (base / "was inside").rename(base / "inside")


STEPS = ("look_at", "create_file", "open_writer", "require_same")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("goes_back", [False, True], ids=["for good", "and back"])
@pytest.mark.parametrize("is_new", [False, True], ids=["a store", "a new store"])
def test_a_directory_that_becomes_a_link_while_a_store_is_opened(
    base: Path, monkeypatch: pytest.MonkeyPatch, step: str, goes_back: bool, is_new: bool
) -> None:
    outside = base.parent / "outside"
    if is_new:
        (base / "inside" / "x.db").unlink()
    before = state_of(outside)
    original = getattr(engine, step)
    done: list[str] = []

    def swapping(*arguments: Any) -> Any:
        if done:
            return original(*arguments)
        done.append(step)
        swap_for_link(base)
        try:
            return original(*arguments)
        finally:
            if goes_back:
                swap_back(base)

    monkeypatch.setattr(engine, step, swapping)
    try:
        with open_storage("inside/x.db", base_dir=base) as store:
            store.set("written", 1)
    except StorageError:
        pass
    assert done
    assert state_of(outside)["x.db"] == before["x.db"]
    assert {name for name, content in state_of(outside).items() if content} == {"x.db"}


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, outside = base / "inside" / "x.db", base.parent / "outside" / "x.db"
    before = outside.read_bytes()
    original: Any = vars(engine)["open_writer"]

    def replacing(*arguments: Any) -> Any:
        path.rename(base / "kept.db")
        path.hardlink_to(outside)
        try:
            return original(*arguments)
        finally:
            path.unlink()
            (base / "kept.db").rename(path)

    monkeypatch.setattr(engine, "open_writer", replacing)
    with pytest.raises(StorageIOError, match="replaced while it was being opened"):
        open_storage("inside/x.db", base_dir=base)
    assert outside.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../outside/x.db",
        "inside/../../outside/x.db",
        "link/x.db",
        "link/new.db",
        "x-link.db",
        "inside/./../../out.db",
    ],
)
def test_no_path_leads_out_of_base_dir(base: Path, name: str) -> None:
    (base / "link").symlink_to(base.parent / "outside")
    (base / "x-link.db").symlink_to(base.parent / "outside" / "x.db")
    before = state_of(base.parent / "outside")
    targets: list[Any] = [name, Path(name), f"sqlite:///{name}", {"options": {"dbPath": name}}]
    for target in targets:
        with pytest.raises(ConfigError):
            open_storage(target, base_dir=base)
    with pytest.raises(ConfigError):
        open_storage({"storage": {"options": {"db_path": name, "base_dir": str(base)}}})
    with pytest.raises(ConfigError):
        open_storage(f"sqlite:///{name.replace('.', '%2E').replace('/', '%2F')}", base_dir=base)
    assert state_of(base.parent / "outside") == before
    assert not (base.parent / "out.db").exists()


def test_a_name_that_only_begins_as_base_dir_does_lies_outside(base: Path) -> None:
    (base.parent / "base-2").mkdir()
    with pytest.raises(ConfigError, match="leads out of base_dir"):
        open_storage(base.parent / "base-2" / "x.db", base_dir=base)


def test_a_base_dir_behind_a_link_holds_what_it_leads_to(base: Path) -> None:
    (base.parent / "link-to-base").symlink_to(base)
    with open_storage("inside/x.db", base_dir=base.parent / "link-to-base") as store:
        assert store.get_status().target == str((base / "inside" / "x.db").resolve())


# ---- for the owner alone


MODES = """
    import os, sys
    from mycelia_storage import open_storage
    from mycelia_storage.cli import main

    umask, where = int(sys.argv[1], 8), sys.argv[2]
    os.umask(umask)
    seen = {}
    is_looking = False

    def look(*_):
        for folder, names, files in os.walk(where):
            for name in names + files:
                path = os.path.join(folder, name)
                try:
                    seen.setdefault(os.path.relpath(path, where), set()).add(os.lstat(path).st_mode & 0o777)
                except FileNotFoundError:
                    pass

    def look_between(event, _):
        # Python tells of each before it is done: of a change of a mode, too.
        global is_looking
        if not is_looking and event in ("open", "os.chmod", "os.mkdir", "os.rename", "os.remove"):
            is_looking = True
            look()
            is_looking = False

    sys.addaudithook(look_between)
    for wal in (True, False):
        path = os.path.join(where, "new", "deeper", f"{wal}.db")
        with open_storage(path, wal_mode=wal) as store:
            store.set_many({f"key{n}": "x" * 500 for n in range(500)})
            look()
            with store.transaction() as tx:
                tx.set("key", 1)
                look()
            store.create_index("a")
            store.backup(os.path.join(where, f"backup of {wal}.db"), progress=look)
            store.backup(os.path.join(where, f"backup of {wal}.db"), progress=look, overwrite=True)
            store.restore(os.path.join(where, f"backup of {wal}.db"), progress=look)
            look()
    with open_storage("memory:") as store:
        store.set("a", 1)
        store.backup(os.path.join(where, "backup of memory.db"), progress=look)
        store.restore(os.path.join(where, "backup of memory.db"), progress=look)
    sys.argv = ["mycelia-storage", "--store", path, "export", "--output", os.path.join(where, "out.jsonl")]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code
    look()
    for name, modes in sorted(seen.items()):
        print(name, *(f"{mode:o}" for mode in sorted(modes)), sep="\\t")
"""


@pytest.mark.parametrize("umask", ["000", "022", "077", "277", "777"])
def test_every_file_is_for_its_owner_alone_at_every_moment(tmp_path: Path, umask: str) -> None:
    where = tmp_path / "where"
    where.mkdir()
    code = textwrap.dedent(MODES)
    done = subprocess.run([sys.executable, "-c", code, umask, str(where)], check=True, capture_output=True, text=True)
    lines = (line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    modes = {name: {int(mode, 8) for mode in found} for name, *found in lines}
    ends = {Path(name).name.partition(".db")[2].lstrip(".") for name in modes}
    assert {"", "-wal", "-shm", "-journal"} <= ends
    assert any(name.endswith(".partial") for name in modes)
    assert any(name.endswith(".part") for name in modes)
    for name, found in modes.items():
        right = 0o700 if (where / name).is_dir() else 0o600
        # Before it has its mode it may have less, if the umask takes that away, but never more.
        assert right in found, name
        assert not [mode for mode in found if mode & ~right], name
