"""Imports from other libraries into PostgreSQL: the same reports and the same entries as in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foreign_files import make

from mycelia_storage import import_from, open_storage

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage


def entries(store: Storage, namespace: str) -> list[tuple[Any, ...]]:
    return [(found.key, found.value, found.metadata, found.expires_at) for found in store.scan(namespace=namespace)]


def test_every_import_does_the_same_on_postgresql(tmp_path: Path, postgres_dsn: str, postgres_schema: str) -> None:
    make(tmp_path)
    with open_storage(postgres_dsn, schema=postgres_schema) as there, open_storage("memory:") as here:
        for store in (there, here):
            store.set("int", "mine", namespace="cache")
        for kind, name in (("sqlitedict", "plain.sqlite"), ("diskcache", "cache"), ("shelve", "shelf_gnu")):
            for how in ({"dry_run": True}, {}, {}, {"existing": "overwrite"}):
                reports = [
                    import_from(store, kind, tmp_path / name, namespace=name, on_error="skip", **how)  # type: ignore[arg-type]
                    for store in (there, here)
                ]
                assert reports[0] == reports[1]
                assert entries(there, name) == entries(here, name)
