"""Programs that forget to close an `AsyncStorage`, or that fork: they end, and what was acknowledged is there."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from pathlib import Path

OPEN = """
import asyncio, os, sys, threading, time
from mycelia_storage import AsyncStorage, open_async_storage, open_storage
path = sys.argv[1]
"""
PROGRAMS = {
    "after many writes": """
async def main():
    store = await open_async_storage(path)
    await asyncio.gather(*(store.set(f"key{n}", n) for n in range(300)))
    print(300)
asyncio.run(main())
""",
    "with a transaction open": """
async def main():
    store = await open_async_storage(path)
    await store.set("key", 1)
    tx = store.transaction()
    await tx.__aenter__()
    await tx.set("never", 1)
    globals()["kept"] = store, tx
    print(1)
asyncio.run(main())
""",
    "with a loop that was never closed": """
loop = asyncio.new_event_loop()
store = loop.run_until_complete(open_async_storage(path)._opened())
tasks = [loop.create_task(store.set(f"key{n}", n)) for n in range(50)]
for task in tasks:
    task._log_destroy_pending = False
loop.run_until_complete(asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED))
print(sum(task.done() for task in tasks), flush=True)
""",
    "with a scan and a read under way": """
async def main():
    store = await open_async_storage(path)
    await store.set_many({f"key{n}": n for n in range(3000)})
    globals()["kept"] = store, store.scan()
    await anext(kept[1])
    globals()["task"] = asyncio.create_task(store.query([]))
    await asyncio.sleep(0)
    print(3000)
asyncio.run(main())
""",
    "by an exception": """
async def main():
    store = await open_async_storage(path)
    async with store.transaction() as tx:
        await tx.set("never", 1)
        await store.sync.nothing()
try:
    asyncio.run(main())
except AttributeError:
    print(0)
""",
    "with a call that never ends": """
from mycelia_storage.aio import threads
threads._EXIT_PATIENCE = 0.1
arrived = threading.Event()
def stay(_):
    arrived.set()
    threading.Event().wait()
async def main():
    store = await open_async_storage(path)
    await store.set("key", 1)
    globals()["task"] = asyncio.create_task(store.modify("key", stay))
    while not arrived.is_set():
        await asyncio.sleep(0)
    print(1)
asyncio.run(main())
""",
    "after a fork": """
async def main(store, name):
    await asyncio.gather(*(store.set(f"{name}{n}", n) for n in range(50)))
    async with store.transaction() as tx:
        await tx.set(name, 1)
    assert await store.get(f"{name}7") == 7

store = AsyncStorage(open_storage(path))
asyncio.run(main(store, "parent"))
child = os.fork()
if child == 0:
    asyncio.run(main(store, "child"))
    asyncio.run(store.close())
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(main(store, "again"))
print(153)
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_and_loses_nothing(tmp_path: Path, name: str) -> None:
    if name == "after a fork" and sys.platform == "win32":
        return
    path = tmp_path / "store.db"
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", OPEN + PROGRAMS[name], str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with open_storage(path) as store:
        assert store.count() >= int(done.stdout)
        assert not store.has("never")
        store.check()
