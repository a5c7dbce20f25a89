"""Hazard: a store that is about to fail, or has failed, and a command that says nothing of it, or makes it worse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from mycelia_storage import open_storage
from mycelia_storage.cli import doctor, main, mounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from command_line import Result

ORIGINAL = Path(__file__).parent / "data" / "original_adapter_v1.db"
PAGE = 4096

MOUNTINFO = """\
24 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
30 24 0:25 / /tmp rw,nosuid shared:5 - tmpfs tmpfs rw
31 24 0:40 / /srv/share rw,relatime - nfs4 server:/export rw,vers=4.2
32 24 0:41 / /home/ada/mail\\040box rw,nosuid - fuse.sshfs ada@host:/ rw,user_id=1000
33 24 8:2 / /media/cd ro,relatime - iso9660 /dev/sr0 rw
34 24 8:3 / /backup rw,relatime - ext4 /dev/sdb1 ro
35 24 0:50 / /srv/share/local rw - xfs /dev/sdc1 rw
36 24 0:51 / /var/lib/app rw - overlay overlay rw,lowerdir=/a
37 24 0:52 / /c rw - 9p drvfs rw
38 24 0:53 / /odd rw - fuse.odd odd rw
39 30 8:9 / /tmp rw - ext4 /dev/sdd1 rw
a line that is none
40 24 0:54 / /short rw - ext4
"""


def told(done: Result) -> tuple[int, Any, str]:
    """The exit code, what was printed, and what was reported."""
    return done.code, done.json if done.out else None, done.err


@pytest.fixture
def look(
    run: Callable[..., Result], path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., dict[str, str]]:
    """What doctor finds, the level by the text; by default on a disk like any other."""

    def call(code: int, *, kind: str = "ext4", options: str = "rw") -> dict[str, str]:
        info = tmp_path / "mountinfo"
        info.write_text(f"1 0 8:1 / / {options} - {kind} /dev/sda1 rw\n")
        monkeypatch.setattr(mounts, "MOUNTS", str(info))
        before = contents(path.parent)
        found_code, answer, _ = told(run("doctor"))
        assert contents(path.parent) == before, "it has changed something"
        found = {f"{finding['what']}: {finding['advice']}": finding["level"] for finding in answer["findings"]}
        assert found_code == code, found
        return found

    return call


def contents(folder: Path) -> dict[str, bytes | None]:
    if not folder.is_dir():
        return {}
    return {
        entry.name: entry.read_bytes() if entry.is_file() and os.access(entry, os.R_OK) else None
        for entry in folder.iterdir()
        if not entry.name.endswith("-shm")
    }


def level_of(found: dict[str, str], *words: str) -> str:
    levels = [level for text, level in found.items() if all(word in text for word in words)]
    assert len(levels) == 1, found
    return levels[0]


def fill(path: Path) -> None:
    with open_storage(path) as store:
        store.set_many({f"k{number:04}": {"n": number, "t": "x" * 200} for number in range(500)})
        store.create_index("n")


def edit(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.close()


# ---- where it stands


@pytest.mark.parametrize(
    ("place", "kind", "is_read_only"),
    [
        ("/srv/app.db", "ext4", False),
        ("/tmp/x/app.db", "ext4", False),
        ("/srv/share/app.db", "nfs4", False),
        ("/srv/shared/app.db", "ext4", False),
        ("/srv/share/local/app.db", "xfs", False),
        ("/home/ada/mail box/app.db", "fuse.sshfs", False),
        ("/media/cd/app.db", "iso9660", True),
        ("/backup/app.db", "ext4", True),
        ("/var/lib/app", "overlay", False),
        ("/short/app.db", "ext4", False),
    ],
)
def test_the_mount_of_a_path_is_the_one_that_lies_on_top(place: str, kind: str, is_read_only: bool) -> None:
    found = mounts.mount_of(place, MOUNTINFO)
    assert found is not None
    assert (found.kind, found.is_read_only) == (kind, is_read_only)
    assert mounts.mount_of(place, "") is None


@pytest.mark.parametrize(
    ("kind", "level", "code"),
    [
        ("nfs", "problem", 3),
        ("cifs", "problem", 3),
        ("9p", "problem", 3),
        ("fuse.sshfs", "problem", 3),
        ("tmpfs", "warning", 1),
        ("overlay", "warning", 1),
        ("fuse.odd", "note", 0),
    ],
)
def test_file_systems_on_which_a_database_is_not_safe(
    path: Path, look: Callable[..., dict[str, str]], kind: str, level: str, code: int
) -> None:
    fill(path)
    assert level_of(look(code, kind=kind), f"is on {kind}") == level


def test_a_disk_that_is_mounted_read_only(path: Path, look: Callable[..., dict[str, str]]) -> None:
    fill(path)
    assert level_of(look(3, options="ro"), "mounted read-only") == "problem"


def test_a_system_that_tells_no_mounts(path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    monkeypatch.setattr(mounts, "MOUNTS", "/nowhere")
    code, answer, _ = told(run("doctor"))
    assert code == 0
    assert "file_system" not in answer


def test_a_disk_with_little_room(
    path: Path, look: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    room = os.statvfs(path)
    monkeypatch.setattr(
        os, "statvfs", lambda _: os.statvfs_result((room.f_bsize, 4096, 10**6, 100, 100, 1000, 0, 0, 0, 255))
    )
    found = look(3)
    assert level_of(found, "409,600 bytes free") == "warning"
    assert level_of(found, "no more files") == "problem"


# ---- a store as it should be, or as it is not there yet


def test_nothing_is_odd_about_a_new_store(path: Path, look: Callable[..., dict[str, str]], run: Any) -> None:
    fill(path)
    assert look(0) == {}
    _, answer, errors = told(run("doctor"))
    assert errors == ""
    assert answer["schema_version"] == 2
    assert answer["journal_mode"] == "wal"
    assert answer["page_size"] == PAGE
    assert answer["settings"]["busy_timeout"] == 5.0
    assert answer["versions"]["sqlite"] == apsw.sqlite_lib_version()
    assert answer["file"].startswith(f"{path.stat().st_size:,} bytes, 0600, ")


def test_an_open_store_is_looked_at_too(path: Path, look: Callable[..., dict[str, str]], run: Any) -> None:
    with open_storage(path) as store:
        store.set("a", 1)
        assert look(0) == {}
        assert "0600" in run("doctor").json["wal"]
        store.set("b", 2)
        assert store.check().entries == 2


def test_what_is_not_there_yet(path: Path, look: Callable[..., dict[str, str]]) -> None:
    assert level_of(look(0), "no file") == "note"
    path.parent.rmdir()
    assert level_of(look(0), "no directory") == "note"


def test_a_store_in_memory_has_versions_and_settings(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--store", "memory:", "doctor"]) == 0
    answer = json.loads(capfdbinary.readouterr()[0])
    assert answer["findings"] == []
    assert answer["settings"]["backend"] == "memory"


def test_a_key_is_never_shown(path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYCELIA_STORAGE_KEY", "hunter2")
    _, answer, errors = told(run("doctor"))
    assert answer["settings"]["encryption_key"] == "given"
    assert "hunter2" not in str(answer) + errors


# ---- permissions


def test_files_that_others_may_read(path: Path, look: Callable[..., dict[str, str]]) -> None:
    fill(path)
    path.chmod(0o644)
    assert level_of(look(1), "store.db (0644)", "chmod 600") == "warning"
    path.chmod(0o600)
    Path(f"{path}-wal").write_bytes(b"")
    Path(f"{path}-wal").chmod(0o660)
    assert level_of(look(1), "store.db-wal (0660)") == "warning"


def test_a_directory_that_everybody_may_write_into(path: Path, look: Callable[..., dict[str, str]]) -> None:
    fill(path)
    path.parent.chmod(0o777)
    assert level_of(look(1), "everybody may write into") == "warning"
    path.parent.chmod(0o1777)
    assert look(0) == {}


def test_what_this_user_may_not_do(
    path: Path, look: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    monkeypatch.setattr(os, "access", lambda where, mode: not mode & os.W_OK)  # whoever runs the tests may be root
    found = look(3)
    assert level_of(found, "may not read and write", "store.db") == "problem"
    assert level_of(found, "cannot be written by") == "problem"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_files_of_two_owners(path: Path, look: Callable[..., dict[str, str]]) -> None:
    fill(path)
    Path(f"{path}-wal").write_bytes(b"")
    Path(f"{path}-wal").chmod(0o600)
    os.chown(f"{path}-wal", 12345, -1)
    assert level_of(look(1), "belongs to user 12345", "chown") == "warning"


# ---- files beside it


def test_a_wal_that_was_never_written_back(
    path: Path, look: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    with open(f"{path}-wal", "wb") as file:
        file.truncate(path.stat().st_size + 1)
    Path(f"{path}-wal").chmod(0o600)
    assert look(0) == {}
    monkeypatch.setattr(doctor, "_LARGE_WAL", 1000)
    assert level_of(look(1), "the -wal has") == "warning"


@pytest.mark.parametrize("name", ["app.backup.1f2e3d4c.partial", "store.db.1f2e3d4c.rekey.partial"])
def test_what_killed_programs_have_left(path: Path, look: Callable[..., dict[str, str]], name: str) -> None:
    fill(path)
    partial = path.parent / name
    partial.write_bytes(b"half")
    assert look(0) == {}  # somebody may be making it just now
    os.utime(partial, (1, 1))
    assert level_of(look(1), str(partial), "remove it") == "warning"


def test_a_journal_that_a_killed_program_has_left(tmp_path: Path, path: Path, look: Callable[..., Any]) -> None:
    other = tmp_path / "other.db"
    with open_storage(other, wal_mode=False) as store:
        store.set("a", 1)
    connection = apsw.Connection(str(other))
    connection.execute("BEGIN; UPDATE storage_entries SET version = 5")
    for end in ("", "-journal"):
        shutil.copyfile(f"{other}{end}", f"{path}{end}")
        Path(f"{path}{end}").chmod(0o600)
    connection.execute("ROLLBACK")
    connection.close()
    found = look(0)
    assert level_of(found, "store.db-journal") == "note"
    assert level_of(found, "journal mode delete") == "note"


# ---- files that do not open


def cut(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(5 * PAGE)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def replace_by_another(path: Path) -> None:
    path.unlink()
    edit(path, "CREATE TABLE t (a)")
    path.chmod(0o600)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: overwrite(path, 0, bytes(100)), ("no SQLite database", "salvage")),
        (lambda path: overwrite(path, 0, bytes(PAGE)), ("no SQLite database", "salvage")),
        (lambda path: overwrite(path, 100, b"\xff" * 3000), ("", "salvage")),
        (cut, ("its end is missing", "salvage")),
        (lambda path: edit(path, "CREATE TABLE planted (a)"), ("schema is not as", "'planted'", "restore")),
        (lambda path: edit(path, "INSERT INTO schema_version VALUES (7, 0)"), ("schema version 7", "install")),
        (
            lambda path: edit(path, "PRAGMA application_id=77", "DROP TABLE storage_entries"),
            ("another", "name another"),
        ),
        (replace_by_another, ("somebody else", "name")),
        (lambda path: path.write_bytes(b"hello"), ("no SQLite database", "name another")),
        (lambda path: os.link(path, path.parent / "second"), ("2 names", "")),
        (lambda path: os.symlink(path, f"{path}-wal"), ("store.db-wal is a link", "")),
    ],
)
def test_a_file_that_does_not_open_and_why(
    path: Path, look: Callable[..., dict[str, str]], damage: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    fill(path)
    damage(path)
    found = {text: level for text, level in look(3).items() if level == "problem"}
    assert any(all(word in text for word in words) for text in found), found


def test_an_older_file_and_an_empty_one(path: Path, look: Callable[..., dict[str, str]]) -> None:
    shutil.copyfile(ORIGINAL, path)
    path.chmod(0o600)
    assert level_of(look(0), "schema version 1") == "note"
    path.write_bytes(b"")
    assert level_of(look(0), "the file is empty") == "note"


# ---- check, salvage and migrate


def test_check_prints_what_is_wrong(path: Path, run: Callable[..., Any]) -> None:
    fill(path)
    code, answer, errors = told(run("check"))
    assert (code, answer["entries"], answer["indexes"], errors) == (0, 500, 1, "")
    with open_storage(path) as store:
        store.drop_index("default: n")
    edit(path, "UPDATE storage_entries SET value = 'SECRET' WHERE key < 'k0003'")
    code, answer, errors = told(run("check"))
    assert code == 3
    assert answer["count"] == len(answer["problems"]) == 3
    assert "'k0001' in namespace 'default'" in answer["problems"][1]
    assert errors.startswith("mycelia-storage: 3 problems were found")
    assert "SECRET" not in str(answer) + errors


def test_salvage_tells_what_was_lost_and_leaves_the_file(path: Path, run: Callable[..., Any]) -> None:
    fill(path)
    target = path.parent / "new.db"
    assert run("salvage", str(target)).code == 0
    target.unlink()
    overwrite(path, 5 * PAGE, bytes(PAGE * 8))
    before = path.read_bytes()
    code, answer, errors = told(run("salvage", str(target)))
    assert code == 1
    assert answer["entries"] + answer["lost"] == 500
    assert answer["lost"] == len(answer["lost_entries"]) > 0
    assert f"{answer['lost']} entries and 0 indexes known to be lost" in errors
    assert path.read_bytes() == before
    assert run("salvage", str(target)).code == 2  # it is there already
    path.unlink()
    assert run("salvage", str(path.parent / "other.db")).code == 3


def test_migrate_goes_up_and_down(path: Path, run: Callable[..., Any]) -> None:
    shutil.copyfile(ORIGINAL, path)
    path.chmod(0o600)
    assert run("migrate", "--to", "1").json == {"path": str(path), "from": 1, "to": 1}
    assert run("migrate").json == {"path": str(path), "from": 1, "to": 2}
    assert run("migrate").json == {"path": str(path), "from": 2, "to": 2}
    with open_storage(path) as store:
        store.set("short", 1, ttl=1000)
    code, _, errors = told(run("migrate", "--to", "1"))
    assert code == 3
    assert "'short'" in errors
    with open_storage(path) as store:
        store.delete("short")
    assert run("migrate", "--to", "1").json == {"path": str(path), "from": 2, "to": 1}
    assert run("migrate", "--to", "7").code == 2
