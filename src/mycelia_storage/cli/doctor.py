"""The verb `doctor`: a store's file and its surroundings, or its server, what is odd about them, and what to do.

Called by `app`, where it is a command. It works on files that cannot be opened as a store, and changes nothing: the
file is only looked at, and never opened as one.

A finding is a `problem` where the store cannot be used, or should not be, before something is done about it; a
`warning` where something will go wrong some day; and else a `note`.
"""

from __future__ import annotations

import os
import platform
import pwd
import re
import stat
import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

import apsw
import msgspec
import orjson
import typer  # noqa: TC002  typer itself evaluates the annotations of a command

from mycelia_storage import __version__, open_storage
from mycelia_storage.cli import mounts, output
from mycelia_storage.cli.doctor_server import findings_on_server
from mycelia_storage.cli.failures import STORAGE_FAILED, CommandError, InputError
from mycelia_storage.cli.opening import options_from_environment, target_of
from mycelia_storage.engines.sqlite import schema
from mycelia_storage.engines.sqlite.connection import read_file
from mycelia_storage.engines.sqlite.places import is_there, look_at
from mycelia_storage.engines.sqlite.raw_pages import MAGIC, page_size
from mycelia_storage.errors import (
    ConfigError,
    NotAStorageFileError,
    SchemaVersionError,
    StorageCorruptError,
    StorageError,
)
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from mycelia_storage.options import Options

Level: TypeAlias = Literal["problem", "warning", "note"]

_LARGE_WAL: Final = 64 * 1024 * 1024
_LITTLE_ROOM: Final = 100 * 1024 * 1024
_PARTIAL: Final = re.compile(r"\.[0-9a-f]{8}(\.rekey)?\.partial(-journal|-wal|-shm)?")
_HOUR_SECONDS: Final = 3600
_WAL_MODE: Final = 2
_UNREAD: Final = "not read: `check` reads them all"


class Finding(NamedTuple):
    """Something odd, and what to do about it."""

    level: Level
    what: str
    advice: str


def doctor(context: typer.Context) -> None:
    """Look at the store's file and its surroundings, and tell what is odd and what to do."""
    options = read_options(target_of(context), options_from_environment())
    facts = _versions(options)
    findings: list[Finding] = []
    if options.path:
        facts |= _Examination(options, findings).facts()
    elif options.backend == "postgresql":
        facts |= _server(target_of(context), findings)
    answer: dict[str, object] = {**facts, "findings": [finding._asdict() for finding in findings]}
    lines = [f"{finding.level}: {finding.what}: {finding.advice}" for finding in findings]
    if output.is_terminal():
        output.show_fields(facts)
    output.show_problems(answer, lines or [_nothing(facts)])
    problems = sum(finding.level == "problem" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    if problems:
        raise CommandError(
            f"{output.counted(problems, 'problem')} and {output.counted(warnings, 'warning')}", STORAGE_FAILED
        )
    if warnings:
        raise InputError(output.counted(warnings, "warning"))


def _server(target: str, findings: list[Finding]) -> dict[str, object]:
    """What the server tells of itself. Nothing is made there."""
    try:
        with open_storage(target, migrate=False, read_only=True) as store:
            status = store.get_status()
    except (StorageError, ImportError) as error:
        findings.append(Finding("problem", str(error), "nothing can be read or written before that is mended"))
        return {}
    findings += [Finding(*found) for found in findings_on_server(status.details)]
    return {"server": status.details}


def _versions(options: Options) -> dict[str, object]:
    settings = msgspec.structs.asdict(options)
    del settings["clock"]
    for name in ("encryption_key", "dsn"):
        settings[name] = None if settings[name] is None else "given"  # and never itself
    settings["engine_options"] = sorted(options.engine_options)
    return {
        "settings": settings,
        "versions": {
            "mycelia-storage": __version__,
            "sqlite": apsw.sqlite_lib_version(),
            "apsw": apsw.apsw_version(),
            "orjson": orjson.__version__,
            "python": platform.python_version(),
        },
    }


class _Examination:
    """One look at a file, the directory, and the file system."""

    def __init__(self, options: Options, findings: list[Finding]) -> None:
        self._options = options
        self._path = options.path
        self._findings = findings

    def _find(self, level: Level, what: str, advice: str) -> None:
        self._findings.append(Finding(level, what, advice))

    def facts(self) -> dict[str, object]:
        """What is known about it; what is odd stands in the findings then."""
        facts: dict[str, object] = {"path": self._path}
        try:
            is_found = is_there(self._path)
        except OSError as error:
            self._find(
                "problem",
                f"nobody lets {_user(os.geteuid())} look for {self._path} ({error.strerror})",
                "run as a user who may, or name another file",
            )
            return facts
        directory = os.path.dirname(self._path)
        if not os.path.isdir(directory):
            self._find("note", f"there is no directory {directory}", "the first write makes it, for its owner alone")
            return facts
        facts |= self._file_system(directory)
        self._directory(directory)
        self._partial_files(directory)
        if not is_found:
            self._find("note", f"there is no file {self._path}", "check the name; the first write makes a new store")
            return facts
        try:
            look_at(self._path)
        except StorageError as error:
            self._find("problem", str(error).removeprefix("db_path: "), "no store is opened on it")
            return facts
        facts |= self._files()
        if os.access(self._path, os.R_OK):
            facts |= self._header()
            facts |= self._schema()
        facts["pages"] = _UNREAD
        return facts

    # ---- around it

    def _file_system(self, directory: str) -> dict[str, object]:
        mount = mounts.mount_of(os.path.realpath(directory))
        room = os.statvfs(directory)
        free = room.f_bavail * room.f_frsize
        size = _size(self._path) or 0
        if free < max(size, _LITTLE_ROOM):
            self._find(
                "warning",
                f"there are {free:,} bytes free on the disk",
                "a backup, a migration or a restore needs as much again as the file has: make room",
            )
        if room.f_files and not room.f_favail:
            self._find("problem", "no more files can be made on this file system", "remove some")
        if mount is None:
            return {"free_bytes": free}
        where = f"{self._path} is on {mount.kind} (mounted at {mount.place})"
        if mount.kind in mounts.NETWORK:
            self._find(
                "problem",
                f"{where}, a network or shared file system",
                "locks and the -shm file are not safe there, and files get damaged: move it to a local disk",
            )
        elif mount.kind in mounts.VOLATILE:
            self._find("warning", f"{where}, which is gone when the machine is switched off", "move it to a disk")
        elif mount.kind in mounts.LAYERED:
            self._find(
                "warning", f"{where}, the upper layer of a container", "it goes with the container: put it on a volume"
            )
        elif mount.kind.startswith("fuse"):
            self._find(
                "note", f"{where}, a file system in a program", "make sure that its locks work, or move the file"
            )
        if mount.is_read_only:
            self._find(
                "problem", f"{mount.place} is mounted read-only", "mount it for writing, or open the store read_only"
            )
        return {"free_bytes": free, "file_system": mount.kind, "mounted_at": mount.place}

    def _directory(self, directory: str) -> None:
        mode = os.stat(directory).st_mode
        if not os.access(directory, os.W_OK | os.X_OK):
            self._find(
                "problem",
                f"{directory} cannot be written by {_user(os.geteuid())}",
                "SQLite makes files beside the store's: give the user the directory, or run as another one",
            )
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            self._find(
                "warning",
                f"everybody may write into {directory} ({_mode(mode)})",
                "others can put files in the store's place: chmod o-w",
            )

    def _partial_files(self, directory: str) -> None:
        try:
            names = sorted(name for name in os.listdir(directory) if _PARTIAL.search(name))
        except PermissionError:
            return
        for name in names:
            path = os.path.join(directory, name)
            try:
                age = time.time() - os.lstat(path).st_mtime
            except FileNotFoundError:
                continue
            if age > _HOUR_SECONDS:
                self._find(
                    "warning",
                    f"{path} is left from a backup or another copy {age / _HOUR_SECONDS:,.0f} hours ago",
                    "if none is running, remove it",
                )

    # ---- the files

    def _files(self) -> dict[str, object]:
        facts: dict[str, object] = {}
        mine = os.geteuid()
        about = os.stat(self._path)
        for end in ("", "-wal", "-shm", "-journal"):
            path = self._path + end
            try:
                found = os.stat(path)
            except FileNotFoundError:
                continue
            name = end.removeprefix("-") or "file"
            facts[name] = f"{found.st_size:,} bytes, {_mode(found.st_mode)}, {_user(found.st_uid)}"
            if found.st_mode & 0o077:
                self._find("warning", f"others may read or write {path} ({_mode(found.st_mode)})", f"chmod 600 {path}")
            if found.st_uid != about.st_uid:
                self._find(
                    "warning",
                    f"{path} belongs to {_user(found.st_uid)}, and the file to {_user(about.st_uid)}",
                    f"run every program on it as one user, and chown {path}",
                )
            if not os.access(path, os.R_OK | os.W_OK):
                self._find(
                    "problem",
                    f"{_user(mine)} may not read and write {path} ({_mode(found.st_mode)}, {_user(found.st_uid)})",
                    f"run as {_user(about.st_uid)}, or change the owner or the mode",
                )
        wal = _size(self._path + "-wal") or 0
        if wal > max(_LARGE_WAL, about.st_size):
            self._find(
                "warning",
                f"the -wal has {wal:,} bytes, and the file {about.st_size:,}",
                "a reader that never ends keeps it from being written back: see `status`, and end scans",
            )
        if _size(self._path + "-journal"):
            self._find(
                "note",
                f"there is a {self._path}-journal",
                "a program writes just now, or was killed while it did; the next one that opens the file undoes that",
            )
        return facts

    def _header(self) -> dict[str, object]:
        try:
            header = read_file(self._path, 0, 100)
            size = os.stat(self._path).st_size
        except (OSError, apsw.Error):
            self._find("problem", f"{self._path} cannot be read", "look at the disk, and restore a backup")
            return {}
        if header[:16] != MAGIC or len(header) < 100:
            return {}
        facts: dict[str, object] = {"page_size": page_size(header), "reserved_bytes": header[20]}
        facts["journal_mode"] = "wal" if header[18] == _WAL_MODE else "delete"
        pages = int.from_bytes(header[28:32], "big")
        if header[24:28] == header[92:96] and pages * page_size(header) > size and not _size(self._path + "-wal"):
            self._find(
                "problem",
                f"the file has {size:,} bytes, and should have {pages * page_size(header):,}: its end is missing",
                "restore a backup, or salvage what is there",
            )
        if (header[18] == _WAL_MODE) != self._options.wal_mode:
            wanted = "wal" if self._options.wal_mode else "delete"
            self._find(
                "note",
                f"the file is in journal mode {facts['journal_mode']}, and wal_mode={self._options.wal_mode}",
                f"whoever opens it next with these options takes it to {wanted}",
            )
        return facts

    def _schema(self) -> dict[str, object]:
        if not _size(self._path):
            self._find("note", "the file is empty", "the first one that opens it makes a store of it")
            return {}
        try:
            version = schema.version_of(self._path, self._options.encryption_key)
        except SchemaVersionError as error:
            self._find("problem", self._without_path(error), "install the library that wrote it, or a later one")
        except ConfigError as error:
            self._find("problem", self._without_path(error), "see the page on encryption")
        except StorageCorruptError as error:
            self._find("problem", self._without_path(error), "restore a backup, or salvage what can be read")
        except NotAStorageFileError as error:
            self._find(
                "problem",
                self._without_path(error),
                "name another file; if it was a store once, it is damaged: restore a backup, or salvage it",
            )
        except (StorageError, apsw.Error, UnicodeDecodeError) as error:
            reason = self._without_path(error) if isinstance(error, StorageError) else "SQLite cannot read it"
            self._find("problem", reason, "try again when nobody uses it; if it stays, it is damaged: see salvage")
        else:
            if version == 1:
                self._find(
                    "note",
                    "the file has schema version 1",
                    "a program that opens it migrates it, of the verbs only `migrate`",
                )
            return {"schema_version": version}
        return {}

    def _without_path(self, error: Exception) -> str:
        return str(error).removeprefix(f"{self._path}: ")


def _nothing(facts: dict[str, object]) -> str:
    sentence = "nothing odd was found"
    return f"{sentence} about the file and around it; its pages were {facts['pages']}" if "pages" in facts else sentence


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _mode(mode: int) -> str:
    return f"{stat.S_IMODE(mode):04o}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
