"""Targets and options: from keyword arguments, a URL or a configuration mapping to one checked value.

Called by `open_storage`. Every error names the option, what was given, and what would be right.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final, Literal, TypeAlias, TypedDict, cast

import msgspec

from mycelia_storage.arguments import shown_number
from mycelia_storage.engines import registry
from mycelia_storage.errors import ConfigError

DEFAULT_TARGET: Final = "./data/storage.db"
Synchronous: TypeAlias = Literal["OFF", "NORMAL", "FULL", "EXTRA"]
SYNCHRONOUS: Final = ("OFF", "NORMAL", "FULL", "EXTRA")
_MAX_SECONDS: Final = 3600.0
_MAX_SCHEMA_BYTES: Final = 63
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What begins like a URL and has a slash too few, and how what is meant by it is written.
_ALMOST_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PATH_OR_URL: Final = "a path, 'sqlite:///relative.db' or 'sqlite:////absolute.db'"
_SERVER_URL: Final = "'postgresql://user@host/database'"
_MEANT: Final = {
    "sqlite": _PATH_OR_URL,
    "sqlite3": _PATH_OR_URL,
    "file": _PATH_OR_URL,
    "memory": "'memory:'",
    "postgres": _SERVER_URL,
    "postgresql": _SERVER_URL,
}
# SQLite's parameters behind a path, and libpq's settings.
_QUERY: Final = re.compile(r"\?\w+=")
_SETTING: Final = re.compile(r"(host|hostaddr|port|dbname|user|password|passfile|service|sslmode)\s*=")


class StorageOptions(TypedDict, total=False):
    """The keyword arguments of `open_storage`. Durations are seconds or a timedelta."""

    db_path: str | os.PathLike[str]
    base_dir: str | os.PathLike[str] | None
    migrate: bool
    wal_mode: bool
    synchronous: Synchronous
    busy_timeout: float | timedelta
    max_readers: int
    prepare_cache_size: int
    max_value_bytes: int
    transaction_timeout: float | timedelta
    read_only: bool
    debug: bool
    checksums: bool | None
    encryption_key: str | bytes | None
    clock: Callable[[], float]
    capacity: int | None
    dsn: str
    schema: str
    pool_min: int
    pool_max: int
    connect_timeout: float | timedelta
    statement_timeout: float | timedelta | None
    prepare_threshold: int | None
    engine_options: Mapping[str, Any]


class Secret:
    """A passphrase, or a URL that may hold one, which no repr, message or log shows; and what was derived from it."""

    def __init__(self, passphrase: bytes) -> None:
        self._passphrase = passphrase
        self.derived: dict[bytes, bytes] = {}
        # Salts with which the key is known to open a file.
        self.proven: set[bytes] = set()

    def __repr__(self) -> str:
        return "<secret>"

    def reveal(self) -> bytes:
        """The passphrase, for who derives a key from it; the URL in UTF-8, for who connects to it."""
        return self._passphrase


class OwnOptions(dict[str, Any]):
    """The options of an engine's own, whose repr shows no more than their names: there may be a secret among them."""

    def __repr__(self) -> str:
        return f"<options {', '.join(map(repr, self))}>"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Every option, checked. `path` is absolute, and empty for what is no SQLite file.

    An engine of another distribution gets these too: `dsn` is the target's URL then, and `engine_options` what only
    that engine knows.
    """

    backend: str
    path: str = ""
    migrate: bool = True
    wal_mode: bool = True
    synchronous: str = "NORMAL"
    busy_timeout: float = 5.0
    max_readers: int = 4
    prepare_cache_size: int = 100
    max_value_bytes: int = 64 * 1024 * 1024
    transaction_timeout: float = 30.0
    read_only: bool = False
    debug: bool = False
    checksums: bool | None = None
    encryption_key: Secret | None = None
    clock: Callable[[], float] = time.time
    clock_is_given: bool = False
    capacity: int | None = None
    dsn: Secret | None = None
    schema: str = "mycelia"
    pool_min: int = 1
    pool_max: int = 16
    connect_timeout: float = 10.0
    statement_timeout: float | None = None
    prepare_threshold: int | None = 5
    engine_options: Mapping[str, Any] = msgspec.field(default_factory=OwnOptions)


_DURATIONS: Final = ("busy_timeout", "transaction_timeout", "connect_timeout", "statement_timeout")
# Options that say where a store is, how much it may hold, or what protects it: another engine, which would not keep
# to them, refuses them. (What only tunes an engine is no harm to another one.)
_ONLY_FOR: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "capacity": (("memory",), "the memory engine"),
    # (A store in memory has them for its backups. That those of a server are encrypted would be taken for more.)
    "checksums": (("sqlite", "memory"), "SQLite files"),
    "encryption_key": (("sqlite", "memory"), "SQLite files"),
    "dsn": (("postgresql", "registered"), "PostgreSQL and of other distributions' engines"),
    "schema": (("postgresql",), "PostgreSQL"),
    "engine_options": (("registered",), "other distributions' engines"),
}
_TARGETS: Final = {"sqlite": "a SQLite file", "memory": "a store in memory", "postgresql": "a PostgreSQL server"}
_NAMES: Final = tuple(StorageOptions.__annotations__)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


_FROM_CAMEL: Final = {_camel(name): name for name in _NAMES if "_" in name}


def read_options(target: object, given: Mapping[str, object]) -> Options:
    """The options that a target and keyword arguments make together; keyword arguments win over a mapping's.

    Raises ConfigError.
    """
    for name in given:
        if name not in _NAMES:
            raise ConfigError(f"unknown option {name!r}{_nearest(name, _NAMES)}")
    path: object = None
    options: dict[str, object] = {}
    if isinstance(target, Mapping):
        backend, options = _read_mapping(target)
    else:
        backend, path = _read_target(target)
    options.update(given)
    if backend not in ("sqlite", "memory"):
        _take_dsn(backend, path, options)
        path = None
    else:
        if path is not None and path != DEFAULT_TARGET and "db_path" in options:
            raise ConfigError(f"db_path: the target {_text(path)} is a path already: give one of the two")
        if backend == "sqlite":
            _refuse_url(options.get("db_path"))
        path = options.pop("db_path", path if path is not None else DEFAULT_TARGET)
    base_dir = options.pop("base_dir", None)
    checked = {name: _CHECKS[name](name, value) for name, value in options.items()}
    if checked.get("checksums") and checked.get("encryption_key"):
        raise ConfigError("checksums: not together with encryption_key, which authenticates each page itself")
    for name, (_, whose) in _ONLY_FOR.items():
        if checked.get(name) not in (None, {}) and not is_for(name, backend):
            raise ConfigError(f"{name}: an option of {whose}, and the target is {_shown_target(backend)}")
    if backend == "sqlite":
        checked["path"] = _resolve(path, base_dir)
    elif backend == "memory":
        for name, value in (("db_path", path), ("base_dir", base_dir)):
            if value is not None:
                _path_text(name, value)
    elif checked.get("pool_min", 1) > checked.get("pool_max", 16):
        raise ConfigError(
            f"pool_min: {checked.get('pool_min', 1)} is more than pool_max, {checked.get('pool_max', 16)}"
        )
    return Options(backend=backend, clock_is_given="clock" in checked, **checked)


def is_for(name: str, backend: str) -> bool:
    """Whether an engine takes an option, if only to leave it alone."""
    kind = backend if backend in _TARGETS else "registered"
    return name not in _ONLY_FOR or kind in _ONLY_FOR[name][0]


def _shown_target(backend: str) -> str:
    return _TARGETS.get(backend, f"a store of the engine {backend!r}")


def _take_dsn(backend: str, target: object, options: dict[str, object]) -> None:
    """Where the store is: from the target or the option `dsn`; without either the engine has other ways to know it.

    (Of PostgreSQL libpq's environment variables say it then.)
    """
    for name in ("db_path", "base_dir"):
        if options.pop(name, None) is not None:
            raise ConfigError(f"{name}: an option of SQLite files, and the target is {_shown_target(backend)}")
    if target is not None:
        if "dsn" in options:
            raise ConfigError("dsn: the target is a URL already: give one of the two")
        options["dsn"] = target


def _read_target(target: object) -> tuple[str, object]:
    if isinstance(target, os.PathLike):
        return "sqlite", os.fspath(target)
    if not isinstance(target, str):
        kind = type(target).__name__
        raise ConfigError(f"target: a path, a URL or a configuration mapping is needed, not {kind}")
    if not target:
        raise ConfigError("target: an empty string is no path; for a store in memory write 'memory:'")
    if target in ("memory:", ":memory:"):
        return "memory", None
    if target != target.strip():
        raise ConfigError(
            "target: what begins or ends with white space is taken for a mistake: leave that out, or give a Path, "
            "which is taken literally"
        )
    found = _SCHEME.match(target)
    if found is None:
        _refuse_lookalike(target)
        return "sqlite", target
    scheme = found[1].lower()
    if scheme in ("postgresql", "postgres"):
        return "postgresql", target
    if scheme == "sqlite":
        return "sqlite", _path_of_url(target, target[found.end() :])
    if registry.is_registered(scheme):
        return scheme, target
    raise _unknown_scheme(scheme)


def _unknown_scheme(scheme: str) -> ConfigError:
    """Never with more of the target than its scheme, behind which a password might stand."""
    others = registry.registered_names()
    urls = {name: f"{name}://…" for name in ("sqlite", "postgresql", "postgres", *others)} | {"memory": "memory:"}
    likely = difflib.get_close_matches(scheme, urls, n=1, cutoff=0.6)
    hint = f"did you mean {urls[likely[0]]!r}? Otherwise " if likely else ""
    known = ["a path", "'sqlite:///relative.db'", "'sqlite:////absolute.db'", "'postgresql://…'"]
    known += [repr(urls[name]) for name in others]
    return ConfigError(f"target: unknown scheme {scheme + '://'!r}: {hint}write {', '.join(known)} or 'memory:'")


def _refuse_lookalike(target: str) -> None:
    """What would quietly become a file with a strange name, and is meant otherwise.

    Where a URL may be meant no more is shown than its scheme, behind which a password might stand.
    """
    begun = _ALMOST_SCHEME.match(target)
    scheme = begun[1].lower() if begun is not None else ""
    if target.strip(":") == "memory":
        what, right = _text(target), "for a store in memory write 'memory:', for a file of that name './memory'"
    elif scheme in _MEANT or (scheme and registry.is_registered(scheme)):
        what = f"what begins with {target[: len(scheme) + 1]!r}"
        right = f"write {_MEANT.get(scheme, repr(scheme + '://…'))}; for a file of that name './{scheme}:…'"
    elif _SETTING.match(target):
        what = f"what begins with {target.partition('=')[0].strip() + '='!r}"
        right = f"for a server write {_SERVER_URL}, or give the settings as dsn to the backend 'postgresql'"
    elif _QUERY.search(target):
        what = f"{_text(target.partition('?')[0])} with a query behind it"
        right = "give options as arguments, such as read_only=True; for a file of that name give a Path"
    elif target.startswith("~"):
        what = _text(target)
        right = "~ is not expanded here: give os.path.expanduser(…), or './~…' for a file of that name"
    else:
        return
    raise ConfigError(f"target: {what} is taken for a mistake: {right}")


def _refuse_url(path: object) -> None:
    """A `db_path` that is a URL, and would quietly become a file in directories of its name.

    No more is shown than its scheme, behind which a password might stand. (A Path is taken literally.)
    """
    found = _SCHEME.match(path.strip()) if isinstance(path, str) else None
    if found is None:
        return
    scheme = found[1].lower()
    url = f"'{scheme}://…'"
    if scheme in ("postgresql", "postgres") or registry.is_registered(scheme):
        backend = "postgresql" if scheme == "postgres" else scheme
        right = f"give it as the target, open_storage({url}), or as the option dsn with the backend {backend!r}"
    elif scheme == "sqlite":
        right = f"give the path without {scheme + '://'!r}, or the URL as the target, open_storage('sqlite:///…')"
    else:
        right = "for a file of that name give a Path"
    raise ConfigError(f"db_path: {url} is a URL, and the path of a SQLite file is needed: {right}")


def _path_of_url(url: str, rest: str) -> str:
    """`sqlite:///relative` and `sqlite:////absolute`, percent-decoded as in every URL."""
    without = re.split("[?#]", url, maxsplit=1)[0]  # there might be a secret in it
    if without != url:
        raise ConfigError(
            f"target: {_text(without)} goes on with a query or fragment: give options as arguments, and write '?' in a "
            "name as %3F"
        )
    if not rest.startswith("/") or len(rest) == 1:
        shown_url = "the URL of a host" if rest else _text(url)  # its user's password might be in it
        raise ConfigError(
            f"target: {shown_url} names no file: write 'sqlite:///relative.db' or 'sqlite:////absolute.db'"
        )
    path = urllib.parse.unquote(rest[1:])
    if path == ":memory:":
        raise ConfigError(f"target: {_text(url)} names no file: for a store in memory write 'memory:'")
    return path


def _read_mapping(target: Mapping[Any, Any]) -> tuple[str, dict[str, object]]:
    """`{"storage": {"backend": …, "options": {…}}}`, or what stands under "storage" alone."""
    where = "target"
    config: Mapping[Any, Any] = target
    if "storage" in config:
        _refuse_unknown(config, ("storage",), where)
        config = config["storage"]
        where = "storage"
        if not isinstance(config, Mapping):
            raise ConfigError(f"storage: a mapping is needed, not {type(config).__name__}")
    _refuse_unknown(config, ("backend", "options"), where)
    backend = _backend(config.get("backend", "auto"))
    given = config.get("options")
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"options: a mapping is needed, not {type(given).__name__}")
    return backend, _snake(given)


def _backend(name: object) -> str:
    if type(name) is str:
        if name in registry.BUILT_IN:
            return registry.BUILT_IN[name]
        if registry.is_registered(name.lower()):
            return name.lower()
    known = (*registry.BUILT_IN, *registry.registered_names())
    raise ConfigError(f"backend: {_text(name)} is none of {', '.join(map(repr, known))}{_nearest(name, known)}")


def _snake(given: Mapping[Any, Any]) -> dict[str, object]:
    """Options by their Python names; a duration under its camelCase name is in milliseconds, as the original's."""
    options: dict[str, object] = {}
    for name, value in given.items():
        known = _FROM_CAMEL.get(name, name) if isinstance(name, str) else name
        if known not in _NAMES:
            raise ConfigError(f"unknown option {_text(name)}{_nearest(name, (*_NAMES, *_FROM_CAMEL))}")
        if known in options:
            raise ConfigError(f"{known}: given twice, as {known} and as {_camel(known)}")
        if known in _DURATIONS and name != known:
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"{name}: a number of milliseconds is needed, not {_text(value)}")
            if value > 1000 * _MAX_SECONDS:
                raise ConfigError(f"{name}: {value} milliseconds are more than an hour")
            options[known] = value / 1000
        else:
            options[known] = value
    return options


def _refuse_unknown(config: Mapping[Any, Any], known: tuple[str, ...], where: str) -> None:
    for name in config:
        if name not in known:
            raise ConfigError(f"{where}: unknown entry {_text(name)}; known: {', '.join(known)}{_nearest(name, known)}")


def _resolve(path: object, base_dir: object) -> str:
    """The absolute path, symlinks followed; with `base_dir` it has to lie inside."""
    name = _path_text("db_path", path)
    if base_dir is None:
        resolved = os.path.realpath(name)
    else:
        base = os.path.realpath(_path_text("base_dir", base_dir))
        resolved = os.path.realpath(os.path.join(base, name))
        if os.path.commonpath([base, resolved]) != base or resolved == base:
            raise ConfigError(f"db_path: {name!r} leads out of base_dir {base!r}")
    if os.path.exists(resolved) and not os.path.isfile(resolved) and not os.path.isdir(resolved):
        raise ConfigError(f"db_path: {name!r} is no regular file")
    if os.path.isdir(resolved) or name.endswith("/"):
        raise ConfigError(f"db_path: {name!r} is a directory, and a file is needed")
    return resolved


def file_path(name: str, value: object) -> str:
    """The absolute path of a file that an argument names, symlinks followed up to its directory. Raises ConfigError."""
    directory, base = os.path.split(os.path.abspath(_path_text(name, value)))
    return os.path.join(os.path.realpath(directory), base)


def _path_text(option: str, value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ConfigError(f"{option}: a str or a PathLike of str is needed, not {type(text).__name__}")
    if not text:
        raise ConfigError(f"{option}: an empty string is no path")
    if "\0" in text:
        raise ConfigError(f"{option}: {_text(text)} holds U+0000")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ConfigError(f"{option}: {_text(text)} cannot be a file name here: it holds a lone surrogate") from None
    return text


def _bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {_text(value)} is neither True nor False")
    return value


def _whole(least: int, most: int) -> Callable[[str, object], int]:
    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"{name}: {_text(value)} is no whole number from {least:,} to {most:,}")
        return value

    return check


def _whole_or_none(name: str, value: object) -> int | None:
    return None if value is None else _whole(1, 2**63 - 1)(name, value)


def _seconds(name: str, value: object) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ConfigError(f"{name}: {_text(value)} is neither a number of seconds nor a timedelta")
    if isinstance(seconds, int):
        seconds = min(seconds, 2**60)
    if math.isnan(seconds) or seconds < 0:
        raise ConfigError(f"{name}: {_text(value)} is no duration: 0 seconds or more are needed")
    if seconds > _MAX_SECONDS:
        hint = "" if isinstance(value, timedelta) else f". Milliseconds? Then write {seconds / 1000:g}"
        raise ConfigError(f"{name}: {seconds:g} seconds are more than an hour{hint}")
    return float(seconds)


def _seconds_above_zero(name: str, value: object) -> float:
    seconds = _seconds(name, value)
    if not seconds:
        raise ConfigError(f"{name}: more than 0 seconds are needed")
    return seconds


def _synchronous(name: str, value: object) -> str:
    if not isinstance(value, str) or value.upper() not in SYNCHRONOUS:
        raise ConfigError(f"{name}: {_text(value)} is none of {', '.join(SYNCHRONOUS)}")
    return value.upper()


def _bool_or_none(name: str, value: object) -> bool | None:
    return None if value is None else _bool(name, value)


def _secret(name: str, value: object) -> Secret | None:
    """Never with the value in what it raises."""
    if value is None:
        return None
    if not isinstance(value, str | bytes):
        raise ConfigError(f"{name}: a str, or bytes, are needed, not {type(value).__name__}")
    if not value:
        raise ConfigError(f"{name}: it is empty, and would protect nothing; None is no encryption")
    try:
        return Secret(value.encode() if isinstance(value, str) else value)
    except UnicodeEncodeError:
        raise ConfigError(f"{name}: it holds a lone surrogate, which is no text; give bytes") from None


def _seconds_or_none(name: str, value: object) -> float | None:
    return None if value is None else _seconds_above_zero(name, value)


def _threshold(name: str, value: object) -> int | None:
    return None if value is None else _whole(0, 1_000_000)(name, value)


def _schema(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name}: a str is needed, not {type(value).__name__}")
    if not value or "\0" in value or not 0 < len(value.encode(errors="replace")) <= _MAX_SCHEMA_BYTES:
        raise ConfigError(f"{name}: {_text(value)} is no name of a schema: 1 to {_MAX_SCHEMA_BYTES} bytes are")
    if value.startswith("pg_") or value == "information_schema":
        raise ConfigError(f"{name}: {_text(value)} belongs to PostgreSQL itself")
    return value


def _clock(name: str, value: object) -> Callable[[], float]:
    if not callable(value):
        raise ConfigError(
            f"{name}: {_text(value)} cannot be called; a function that gives seconds since 1970 is needed"
        )
    return cast("Callable[[], float]", value)


def _own_options(name: str, value: object) -> OwnOptions:
    """What only an engine of another distribution knows, which checks it."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: a mapping is needed, not {type(value).__name__}")
    own = OwnOptions(cast("Mapping[str, Any]", value))
    for given in own:
        if not isinstance(given, str):
            raise ConfigError(f"{name}: the name of an option is a str, not {type(given).__name__}")
    return own


_CHECKS: Final[dict[str, Callable[[str, object], Any]]] = {
    "migrate": _bool,
    "wal_mode": _bool,
    "synchronous": _synchronous,
    "busy_timeout": _seconds,
    "max_readers": _whole(1, 1000),
    "prepare_cache_size": _whole(0, 10_000),
    "max_value_bytes": _whole(1, 1_000_000_000),
    "transaction_timeout": _seconds_above_zero,
    "read_only": _bool,
    "debug": _bool,
    "checksums": _bool_or_none,
    "encryption_key": _secret,
    "clock": _clock,
    "capacity": _whole_or_none,
    "dsn": _secret,
    "schema": _schema,
    "pool_min": _whole(0, 1000),
    "pool_max": _whole(1, 1000),
    "connect_timeout": _seconds_above_zero,
    "statement_timeout": _seconds_or_none,
    "prepare_threshold": _threshold,
    "engine_options": _own_options,
}


def _nearest(name: object, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    return f": did you mean {close[0]!r}?" if close else ""


def _text(value: object) -> str:
    return repr(value) if type(value) is timedelta else shown_number(value)
