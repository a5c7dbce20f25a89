"""Files as diskcache, sqlitedict and shelve make them, made by these in a process of its own.

Called by the tests of imports from elsewhere. In a process of its own, because SQLite's locks hold between processes
only, and because what these libraries leave open is their own affair.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

from children import run

DATA = Path(__file__).parent / "data"

MAKE = """
import datetime, json, os, pickle, shelve, sqlite3, sys, time, zlib
import dbm.dumb
import diskcache
from sqlitedict import SqliteDict

os.chdir(sys.argv[1])

with diskcache.Cache("cache") as cache:
    cache.update = lambda values: [cache.set(key, value) for key, value in values.items()]
    cache.update({
        "object": {"x": [1, 2.5, None]}, "none": None, "true": True, "float": 2.5, "int": 7, "text": "é", 5: "five",
        "large text": "é\\r\\n" * 30000, "large object": list(range(50000)), 2**63: "beyond",
    })
    cache.update({
        1.5: 1, b"bytes": 1, ("a", 1): 1, None: 1, True: 1, "bytes": b"abc", "large bytes": b"x" * 50000,
        "nan": float("nan"), "infinite": float("inf"), "date": datetime.date(2024, 1, 1), "nested": {"a": [b"x"]},
        7: "number", "7": "text",
    })
    cache.set("for an hour", 1, expire=3600)
    cache.set("for ever", 1, expire=float("inf"))
    cache.set("tagged", 1, tag="group")
    cache.set("tagged by number", 1, tag=5)
    cache.set("tagged by bytes", 1, tag=b"group")
    cache.set("gone", 1, expire=0.001)  # the last one: a later one would remove it
    time.sleep(0.01)
with diskcache.FanoutCache("shards", shards=4) as shards:
    for number in range(100):
        shards[f"key {number}"] = {"n": number}
    shards.cache("sub")["hidden"] = 1
    shards.cache("sub").close()
diskcache.Deque(["a", "b", "c"], "deque")
diskcache.Index("index", {"a": 1, "b": [2]})
with diskcache.Cache("json", disk=diskcache.JSONDisk) as cache:
    for key, value in {"a": {"x": 1}, 4: "four", 3: "number", "3": "text", "large": os.urandom(40000).hex()}.items():
        cache[key] = value
    cache[["list"]] = 1

def fill(name, values, **how):
    with SqliteDict(name, autocommit=False, outer_stack=False, **how) as words:
        for key, value in values.items():
            words[key] = value
        words.commit()

plain = {f"key {number}": {"n": number, "text": "é" * (number % 9)} for number in range(2500)}
fill("plain.sqlite", {**plain, "date": {"at": [datetime.date(2024, 1, 1)]}, 5: "five"})
fill("tables.sqlite", {"a": 1}, tablename='the "first"')
fill("tables.sqlite", {"b": 2, "a": 3}, tablename="second")
fill("json.sqlite", {"a": {"x": 1}, "nan": float("nan"), "long": 2**64}, encode=json.dumps, decode=json.loads)
for name, dump in (("pickle", pickle.dumps), ("json", lambda value: json.dumps(value).encode())):
    fill(f"zlib_{name}.sqlite", {"a": {"x": [1] * 10}}, encode=lambda value: sqlite3.Binary(zlib.compress(dump(value))))
fill("as_it_is.sqlite", {"a": 5, "b": 2.5, "c": None, "d": "text", "e": "[1]"}, encode=lambda value: value)

for module in ("dbm.dumb", "dbm.sqlite3", "dbm.gnu", "dbm.ndbm"):
    try:
        made = __import__(module, fromlist=["open"]).open("shelf_" + module.partition(".")[2], "n")
    except ImportError:
        continue
    with shelve.Shelf(made) as shelf:
        for number in range(60):
            shelf[f"key {number}"] = {"n": number, "text": "é" * (number % 50)}
        shelf["large"] = ["x" * 100] * 300 + [str(number) * 20 for number in range(300)]
        for number in range(0, 60, 7):
            del shelf[f"key {number}"]
        shelf["key 1"] = {"n": "changed", "more": "y" * 2000}
"""


def make(directory: Path) -> None:
    """Make all of them, and those that only other Pythons make, from where they are kept."""
    run(MAKE, directory)
    for file in DATA.glob("*.gz"):
        (directory / file.stem).write_bytes(gzip.decompress(file.read_bytes()))


def shelf() -> dict[str, object]:
    """What stands in each file of shelve."""
    words: dict[str, object] = {f"key {number}": {"n": number, "text": "é" * (number % 50)} for number in range(60)}
    words["large"] = ["x" * 100] * 300 + [str(number) * 20 for number in range(300)]
    for number in range(0, 60, 7):
        del words[f"key {number}"]
    words["key 1"] = {"n": "changed", "more": "y" * 2000}
    return words


def state(directory: Path) -> dict[str, tuple[str, int, int]]:
    """Every file below: its bytes, mode and when it was changed."""
    found: dict[str, tuple[str, int, int]] = {}
    for place, _, names in os.walk(directory):
        for name in names:
            file = Path(place, name)
            about = file.stat()
            found[str(file)] = hashlib.sha256(file.read_bytes()).hexdigest(), about.st_mode, about.st_mtime_ns
    return found
