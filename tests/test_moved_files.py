"""A file that is moved, replaced or removed while a store has it open: nothing is acknowledged that would be lost."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from children import run
from stepping import Held, Workers, line_up, result

from mycelia_storage import AsyncStorage, Storage, StorageIOError, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WRITES: dict[str, Callable[[Storage], object]] = {
    "set": lambda store: store.set("k", 2),
    "set of a new namespace": lambda store: store.set("k", 2, namespace="new"),
    "set with a condition": lambda store: store.set("k", 2, if_version=store.get_entry("k").version),
    "durable": lambda store: store.set("k", 2, durable=True),
    "set_many": lambda store: store.set_many({"a": 1, "b": 2}),
    "load": lambda store: store.load([("a", 1)]),
    "delete": lambda store: store.delete("k"),
    "delete_many": lambda store: store.delete_many(["k", "l"]),
    "delete_where": lambda store: store.delete_where({"field": "$value", "operator": "eq", "value": 1}),
    "clear": lambda store: store.clear(),
    "take": lambda store: store.take("k"),
    "touch": lambda store: store.touch("k", ttl=5),
    "modify": lambda store: store.modify("k", lambda value: value),
    "transaction": lambda store: store.run_transaction(lambda tx: tx.set("k", 2)),
    "create_index": lambda store: store.create_index("age"),
    "create_namespace": lambda store: store.create_namespace("n"),
    "migrate": lambda store: store.migrate(to=1),
    "awaited": lambda store: asyncio.run(awaited(store)),
}


async def awaited(store: Storage) -> None:
    front = AsyncStorage(store)
    found = await asyncio.gather(*(front.set(f"{n}", n) for n in range(4)), return_exceptions=True)
    await front._stop()
    assert len({id(one) for one in found}) == 4
    for one in found:
        assert isinstance(one, StorageIOError), one
    raise found[0]  # type: ignore[misc]


def move(path: str) -> None:
    os.rename(path, path + ".moved")


def replace(path: str) -> None:
    os.rename(path + ".other", path)


def remove(path: str) -> None:
    os.unlink(path)


HAPPENS: dict[str, tuple[Callable[[str], None], str]] = {
    "moved": (move, "moved away or removed"),
    "replaced": (replace, "replaced by another"),
    "removed": (remove, "moved away or removed"),
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = str(tmp_path / "store.db")
    with open_storage(path) as store:
        store.set("k", 1)
    shutil.copy(path, path + ".other")
    return path


@pytest.fixture(params=[True, False], ids=["WAL", "journal"])
def store(path: str, request: pytest.FixtureRequest) -> Iterator[Storage]:
    store = open_storage(path, wal_mode=request.param)
    store.set("l", 1)
    assert store.get("l") == 1  # a reader is open
    yield store
    store.close()


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("happens", HAPPENS)
def test_no_write_is_acknowledged(path: str, store: Storage, happens: str, write: Callable[[Storage], object]) -> None:
    event, message = HAPPENS[happens]
    assert store.get("k") == 1
    before = other_bytes(path + ".other")
    event(path)
    for _ in range(2):
        with pytest.raises(StorageIOError, match=message) as raised:
            write(store)
        assert path in str(raised.value)
    assert store.get("k") == 1, "what is open can be read"
    if happens == "replaced":
        assert other_bytes(path) == before


def other_bytes(path: str) -> bytes:
    """What a file holds that is not the store's."""
    with open(path, "rb") as file:
        return file.read()


def test_a_file_that_is_put_back_is_used_on(path: str, store: Storage) -> None:
    move(path)
    with pytest.raises(StorageIOError):
        store.set("k", 2)
    os.rename(path + ".moved", path)
    store.set("k", 3)
    store.close()
    with open_storage(path) as again:
        assert again.get_many(["k", "l"]) == {"k": 3, "l": 1}


@pytest.mark.parametrize("happens", HAPPENS)
def test_a_transaction_that_is_open_meanwhile_is_not_committed(path: str, store: Storage, happens: str) -> None:
    event, message = HAPPENS[happens]

    def work() -> None:
        with store.transaction() as tx:
            tx.set("k", 2)
            event(path)

    with pytest.raises(StorageIOError, match=message):
        work()
    assert store.get("k") == 1


def test_what_stands_in_line_meanwhile_is_not_committed(path: str, store: Storage) -> None:
    with Workers() as workers, Held(store) as held:
        calls: list[Callable[[], object]] = [
            lambda: store.set("a", 1),
            lambda: store.set_many({"b": 1}),
            lambda: store.delete("k"),
        ]
        futures = line_up(store, workers, calls)
        remove(path)
        held.let_go()
        for future in futures:
            with pytest.raises(StorageIOError, match="removed"):
                result(future)
    assert store.list_keys() == ["k", "l"]


def test_a_restore_does_not_go_into_a_file_that_is_gone(path: str, store: Storage, tmp_path: Path) -> None:
    backup = str(tmp_path / "backup.db")
    store.backup(backup)
    move(path)
    with pytest.raises(StorageIOError, match="moved away"):
        store.restore(backup)


def test_a_restore_stops_when_its_file_goes(path: str, store: Storage, tmp_path: Path) -> None:
    store.set_many({f"{n}": "r" * 4000 for n in range(3000)})
    backup = str(tmp_path / "backup.db")
    store.backup(backup)

    def progress(step: Any) -> None:
        if step.step == "restoring" and step.done and os.path.exists(path):
            move(path)

    with pytest.raises(StorageIOError, match="moved away"):
        store.restore(backup, progress=progress)


def test_no_other_file_is_read_in_its_place(path: str) -> None:
    """A store opens its readers when it needs them."""
    with open_storage(path, max_readers=3) as store:
        with open_storage(path + ".other") as other:
            other.set("k", "other")
        replace(path)
        for read in (lambda: store.get("k"), lambda: list(store.scan()), lambda: store.backup(path + ".backup")):
            with pytest.raises(StorageIOError, match="replaced"):
                read()


FORKS = """
import os, sys
from mycelia_storage import StorageIOError, open_storage
path = sys.argv[1]
store = open_storage(path)
store.set("k", 2)
child = os.fork()
if not child:
    os._exit(0)
os.waitpid(child, 0)
os.rename(path, path + ".moved")
os.rename(path + ".other", path)
for call in (lambda: store.set("k", 3), lambda: store.get("k")):
    try:
        print(call())
    except StorageIOError as error:
        print("replaced" in str(error))
store.close()
"""


def test_after_a_fork_no_other_file_is_opened_in_its_place(path: str) -> None:
    assert run(FORKS, path).split() == ["True", "True"]


def test_closing_leaves_the_file_alone_that_took_its_place(path: str, store: Storage) -> None:
    replace(path)
    before = other_bytes(path)
    with suppress(StorageIOError):
        store.close()
    assert other_bytes(path) == before
