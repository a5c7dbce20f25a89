"""Engines by their names: those of this library, and those that other distributions bring.

Called by `open_storage`, and by `options.py` for the names.

A distribution registers an engine as an entry point of the group `mycelia_storage.engines`: its name is the scheme of a
target and the `backend` of a configuration mapping, its value a function that takes the checked `Options` and gives an
`Engine`. Entry points are looked up only for a name that is not one of our own, so nobody else pays for them, and no
distribution can put its engine in the place of one of ours.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final, cast

from mycelia_storage.engines.engine import Engine, Primitives
from mycelia_storage.engines.memory import MemoryEngine
from mycelia_storage.engines.sqlite import SQLiteEngine
from mycelia_storage.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.metadata import EntryPoint

    from mycelia_storage.options import Options

GROUP: Final = "mycelia_storage.engines"
# What a configuration mapping calls our own engines. Nobody else's have these names, nor those further ones that might
# be taken for ours, whatever the case of their letters.
BUILT_IN: Final[dict[str, str]] = {
    "sqlite": "sqlite",
    "auto": "sqlite",
    "memory": "memory",
    "postgresql": "postgresql",
}
_KEPT: Final = frozenset((*BUILT_IN, "postgres", "sqlite3", "file"))


def open_engine(options: Options) -> Engine:
    """The engine that the options say, opened. Raises ConfigError where it cannot be had, and whatever it raises."""
    if options.backend == "memory":
        return MemoryEngine(options)
    if options.backend == "sqlite":
        return SQLiteEngine(options)
    if options.backend == "postgresql":
        return _open_postgres(options)
    return _open_registered(options)


def _open_postgres(options: Options) -> Engine:
    try:
        package = importlib.import_module("mycelia_storage.engines.postgres")
    except ImportError as error:
        raise ConfigError(
            "target: PostgreSQL needs the driver psycopg with its pool: install this library with its extra, "
            f"pip install '.[postgres]' where its sources are, or pip install 'psycopg[binary,pool]' ({error})"
        ) from error
    engine: Engine = package.PostgresEngine(options)
    return engine


def _open_registered(options: Options) -> Engine:
    point = _one(options.backend)
    engine = _load(point)(options)
    missing = [name for name in _names_of(Engine) if not hasattr(engine, name)]
    if "auto" not in missing:
        missing += [f"auto.{name}" for name in _names_of(Primitives) if not hasattr(engine.auto, name)]
    if missing:
        close: Callable[[], object] = getattr(engine, "close", _nothing)
        close()
        raise ConfigError(
            f"{_shown(point)}: it does not fit this version of mycelia-storage, whose engines have "
            f"{', '.join(missing)} besides"
        )
    return engine


def _load(point: EntryPoint) -> Callable[[Options], Engine]:
    try:
        make = point.load()
    except Exception as error:
        raise ConfigError(f"{_shown(point)}: it cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise ConfigError(f"{_shown(point)}: {point.value} cannot be called, and so makes no engine")
    return cast("Callable[[Options], Engine]", make)


def _one(name: str) -> EntryPoint:
    """The entry point of a name. Raises ConfigError where it is gone, or where there are several."""
    points = [point for point in _registered() if point.name.lower() == name]
    if len(points) > 1:
        several = " and ".join(sorted(map(_distribution, points)))
        raise ConfigError(f"the engine {name!r} is registered by {several}: which is meant cannot be known; remove one")
    if not points:
        raise ConfigError(f"the engine {name!r} is not registered any more")
    return points[0]


def is_registered(name: str) -> bool:
    """Whether a distribution brings an engine of this name, which is none of our own."""
    return name not in _KEPT and any(point.name.lower() == name for point in _registered())


def registered_names() -> list[str]:
    """The names of the engines that other distributions bring: for messages."""
    return sorted({point.name.lower() for point in _registered()})


def _registered() -> Iterator[EntryPoint]:
    from importlib.metadata import entry_points  # noqa: PLC0415  it takes long, and most never need it

    return (point for point in entry_points(group=GROUP) if point.name.lower() not in _KEPT)


def _shown(point: EntryPoint) -> str:
    return f"the engine {point.name!r} of {_distribution(point)}"


def _distribution(point: EntryPoint) -> str:
    return "an unknown distribution" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _names_of(protocol: Any) -> list[str]:
    return [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]


def _nothing() -> None:
    """Closes what cannot be closed."""
