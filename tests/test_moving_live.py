"""Hazard: a copy is killed, or its source is written to meanwhile, and what is in the target is no state of the source.

The short form kills a few copies; the long one some hundred:

    pytest --hypothesis-profile=long -n 0 -s tests/test_moving_live.py
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import pytest
from children import Child
from test_moving import contents, versions

from mycelia_storage import (
    CopyMismatchError,
    CopyProgress,
    Storage,
    catch_up,
    copy,
    deletions,
    lockstep,
    moving,
    open_storage,
)

if TYPE_CHECKING:
    from pathlib import Path

ENTRIES = 600
ROWS = 20  # at once

COPY = f"""
import sys
from mycelia_storage import catch_up, copy, deletions, lockstep, moving, open_storage
lockstep.ROWS_AT_ONCE = {ROWS}
deletions.KEYS_COUNTED = {ROWS}
def tell(progress):
    print(progress.step, progress.done, flush=True)
    sys.stdin.readline()
source, target, verb = sys.argv[1:]
with open_storage(source) as source, open_storage(target) as target:
    report = getattr(moving, verb)(source, target, progress=tell)
    print("done", report.written, report.verified, flush=True)
"""

WRITE = """
import random, sys
from mycelia_storage import open_storage
with open_storage(sys.argv[1]) as store:
    choose = random.Random(1)
    keys = [f"key {number:03d}" for number in range(600)]
    begin()
    for number in range(400):
        with store.transaction() as tx:  # what one has more, another has less
            one, other = choose.sample(keys, 2)
            tx.increment(one, 1, field="n")
            tx.increment(other, -1, field="n")
            tx.delete(f"key {number:03d} more")
            tx.set(f"key {number:03d} again", {"n": 0})
        if number % 20 == 0:
            print(number, flush=True)
            sys.stdin.readline()
print("done")
"""


def fill(path: Path) -> None:
    with open_storage(path) as source:
        source.set_many({f"key {number:03d}": {"n": 0} for number in range(ENTRIES)})
        source.set_many({f"key {number:03d} more": {"n": 0} for number in range(400)})
        source.set_many({f"k{number}": number for number in range(50)}, namespace="other", ttl=100_000)
        source.create_index("n")


def run_until(verb: str, lines: int, paths: tuple[Path, Path], seconds: float = 0.0) -> tuple[bool, list[str]]:
    """Let a copy come so far, and so many seconds, and kill it; whether it was done before, and what it said last."""
    with Child(COPY, *paths, verb) as child:
        said = ["begin"]
        for _ in range(lines):
            said = child.line().split()
            if said[0] == "done":
                child.output()
                return True, said
            child.tell()
        time.sleep(seconds)
        return False, said


def test_a_killed_copy_goes_on_and_never_starts_over(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    fill(tmp_path / "source.db")
    with open_storage(tmp_path / "source.db") as source:
        expected = contents(source)
    killed = 0
    for number in range(40 if is_long else 2):
        killed += kill_until_done(tmp_path / "source.db", tmp_path / f"{number}.db", expected, random.Random())
    assert killed > 2
    if is_long:
        print(f"{killed} copies were killed")


def kill_until_done(source: Path, path: Path, expected: dict[str, Any], chance: random.Random) -> int:
    """Kill one copy again and again, somewhere in a step; how often."""
    total = sum(map(len, expected["rows"].values()))
    kills = arrived = 0
    while True:
        # What was compared is not remembered, so that the last one has to come to its end.
        lines = chance.randrange(1, 70) if arrived < total or chance.random() < 0.5 else 1000
        is_done, said = run_until("copy", lines, (source, path), chance.uniform(0, 0.02))
        with open_storage(path) as target:
            target.check()
            found = contents(target)
        # Whatever is there, is there as it was, and what was there before is there still.
        assert all(set(rows) <= set(expected["rows"][namespace]) for namespace, rows in found["rows"].items())
        there = sum(map(len, found["rows"].values()))
        assert there >= arrived
        if is_done:
            assert (int(said[1]), int(said[2])) == (total - arrived, total)
            assert found == expected
            return kills
        arrived = there
        kills += 1


def test_a_killed_catching_up_is_noticed_by_the_next_one(tmp_path: Path) -> None:
    paths = tmp_path / "source.db", tmp_path / "target.db"
    fill(paths[0])
    with open_storage(paths[0]) as source, open_storage(paths[1]) as target:
        copy(source, target)
    for lines in (1, 2, 3):
        with open_storage(paths[0]) as source:
            source.set_many({f"key {number:03d}": lines for number in range(0, ENTRIES, 3)})
            source.delete_many([f"key {number:03d} more" for number in range(lines * 50)])
        run_until("catch_up", lines, paths)
    with open_storage(paths[0]) as source, open_storage(paths[1]) as target:
        catch_up(source, target)
        assert contents(target) == contents(source)


def test_a_copy_is_one_state_of_a_source_that_others_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "ROWS_AT_ONCE", ROWS)
    monkeypatch.setattr(deletions, "KEYS_COUNTED", ROWS)
    fill(tmp_path / "source.db")
    with (
        open_storage(tmp_path / "source.db") as source,
        open_storage(tmp_path / "target.db") as target,
        Child(WRITE, tmp_path / "source.db") as writer,
    ):
        assert writer.line() == "ready"
        writer.tell()

        def let_write(progress: CopyProgress) -> None:
            if progress.step == "copying" and progress.done % (5 * ROWS) == 0 and writer.line() not in ("done", ""):
                writer.tell()

        copy(source, target, progress=let_write)
        assert sum(entry.value["n"] for entry in target.scan()) == 0
        assert len(versions(target)) == ENTRIES + 400
        catch_up(source, target)
        assert sum(entry.value["n"] for entry in target.scan()) == 0
        while writer.line() not in ("done", ""):
            writer.tell()
        # It is over, and the pause begins: what is caught up now is all there is.
        monkeypatch.setattr(moving._Copy, "copy_everything", None)
        catch_up(source, target)
        assert contents(target) == contents(source)


@pytest.mark.parametrize("engine", ["memory", "sqlite"])
def test_writes_of_this_process_are_not_mixed_in(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "ROWS_AT_ONCE", ROWS)
    with (
        open_storage("memory:" if engine == "memory" else tmp_path / "source.db") as source,
        open_storage("memory:") as target,
    ):
        source.set_many({f"key {number:03d}": 0 for number in range(200)})
        before = contents(source)

        def write(progress: CopyProgress) -> None:
            change(source, progress.done)

        copy(source, target, progress=write)
        assert contents(target) == before
        catch_up(source, target)
        assert contents(target) == contents(source)


def change(source: Storage, number: int) -> None:
    source.set(f"key {number % 200:03d}", "changed")
    source.set(f"key {(number + 77) % 200:03d}", "changed")
    source.delete(f"key {(number + 130) % 200:03d}")
    source.set("new", 1, namespace=f"new {number}")


def test_without_a_wal_a_change_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "ROWS_AT_ONCE", ROWS)
    with open_storage(tmp_path / "source.db", wal_mode=False) as source, open_storage("memory:") as target:
        source.set_many({f"key {number:03d}": 0 for number in range(200)})

        def write(progress: CopyProgress) -> None:
            if progress.done == 100:
                source.set("key 003", "changed")

        with pytest.raises(CopyMismatchError) as error:
            copy(source, target, progress=write)
        assert error.value.keys == (("default", "key 003"),)
        copy(source, target)
        assert contents(target) == contents(source)
