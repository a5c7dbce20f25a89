"""Hazard: writing gathered rows fails or is interrupted: rows are lost or done twice, or their members told wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Self

import apsw
from hypothesis import settings
from test_gathered_rows import OwnError, contents, rows, setting, shared, unique
from test_shared_commits import writer_connection

from mycelia_storage import StorageFullError, UniqueIndexError, open_async_storage, open_storage
from mycelia_storage.engines.limits import hurrying
from mycelia_storage.engines.sqlite import commits as commits_module
from mycelia_storage.engines.sqlite import shared as shared_module
from mycelia_storage.engines.sqlite.trust import begin_to_write
from mycelia_storage.sharing import Call
from mycelia_storage.testing import FakeClock, difference
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    import pytest

IS_SHORT = settings().max_examples == 100


def test_a_full_disk_fails_those_that_have_no_room(tmp_path: Path) -> None:
    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        connection = writer_connection(store)
        connection.execute(f"PRAGMA max_page_count={connection.pragma('page_count') + 20}")
        found = shared(store, [setting(f"{number:3}", "x" * 1_900) for number in range(100)])
        refused = [number for number, one in enumerate(found) if one is StorageFullError]
        assert 0 < len(refused) < 100
        kept = [f"{number:3}" for number in range(100) if number not in refused]
        assert store.list_keys() == [*kept, "warm"]
        connection.execute("PRAGMA max_page_count=100000")
        store.check()


def test_what_a_member_met_in_a_try_that_was_undone_is_forgotten(tmp_path: Path) -> None:
    """Somebody else may have changed what it meets."""
    tries: list[int] = []

    def first_only(verbs: Verbs) -> None:
        tries.append(1)
        if len(tries) > 1:
            raise OwnError
        Verbs.set(verbs, "k", "first")

    with open_storage(tmp_path / "store.db") as store:
        unique(store)
        calls = [
            Call(first_only),
            setting("k", "second", overwrite=False),
            *[setting(f"{number}", {"n": number % 2}, namespace="unique") for number in range(1, 3)],
        ]
        found = shared(store, calls)
        assert [one if isinstance(one, type) else None for one in found] == [OwnError, None, None, UniqueIndexError]
        assert store.get("k") == "second"


def test_where_somebody_has_the_file_between_two_tries_each_is_done_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begins: list[bool] = []

    def begin(*arguments: Any) -> None:
        begins.append(True)
        if len(begins) == 2:
            raise apsw.BusyError
        begin_to_write(*arguments)

    with open_storage(tmp_path / "store.db") as store:
        unique(store)
        monkeypatch.setattr(commits_module, "begin_to_write", begin)
        count = Call(lambda verbs: Verbs.increment(verbs, "n"))
        calls = [setting(f"{number}", {"n": number % 5}, namespace="unique") for number in range(1, 6)]
        found = shared(store, [count, *calls])
        assert [one if isinstance(one, type) else None for one in found] == [*[None] * 5, UniqueIndexError]
        assert len(begins) == 2 + 6
        assert (count.result, store.get("n"), store.count(namespace="unique")) == (1, 1, 5)


def test_a_group_that_is_late_when_its_rows_are_written_is_done_by_who_may_wait(tmp_path: Path) -> None:
    def late(verbs: Verbs) -> int:
        if hurrying.hurry_until:
            hurrying.hurry_until = 1e-9
        return Verbs.set(verbs, "late", 1)

    with open_storage(tmp_path / "store.db") as store:
        store.set("warm", 0)
        calls = [*rows("row", 64), Call(late)]
        hurrying.hurry_until = time.monotonic() + 60
        try:
            first = [setting("first"), *rows("first", 64)]
            store._share_at_once(first)
            store._share_at_once(calls)
        finally:
            hurrying.hurry_until = 0.0
        assert all(call.is_done for call in first)
        assert not any(call.is_done or call.error for call in calls)
        assert store.count() == 66
        shared(store, calls)
        assert store.count() == 66 + 65


class Interrupting:
    """Ctrl-C at one line after the other of what runs a shared commit, from when the lock is taken until it is back."""

    FILES = (commits_module.__file__, shared_module.__file__)

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> Self:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        return self._line if code.co_filename in self.FILES and code.co_name != "share" else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._line


def interrupted_calls(version: int) -> list[Call]:
    return [
        setting("k", "first", if_version=version),
        setting("k", "second", if_version=version),  # fails, unless the first was undone
        *[setting(f"{n}", {"n": n}, namespace="unique") for n in range(1, 4)],
        setting("bad", {"n": 0}, namespace="unique"),
        *rows("row", 2),
        Call(lambda verbs: Verbs.increment(verbs, "n")),
    ]


def test_ctrl_c_at_any_line_loses_nothing_and_does_nothing_twice(tmp_path: Path) -> None:
    """What is not done is handed over once more, as those do who wait: and then everything is as without Ctrl-C."""
    with open_storage("memory:", clock=FakeClock()) as memory:
        unique(memory)
        expected = shared(memory, interrupted_calls(memory.set("k", 0)))
        there = contents(memory)
    at, is_over = 1, False
    while not is_over:
        path = tmp_path / f"{at}.db"
        with open_storage(path, clock=FakeClock()) as store:
            unique(store)
            calls = interrupted_calls(store.set("k", 0))
            with contextlib.suppress(KeyboardInterrupt), Interrupting(at) as interrupting:
                store._share(calls)
            is_over = interrupting.left > 0
            left = [call for call in calls if not call.is_done]
            assert not any(call.error for call in left)
            if left:
                store._share(left)
            found = [call.result if call.error is None else type(call.error) for call in calls]
            assert (at, found) == (at, expected)
            assert difference(contents(store), there) == ""
        path.unlink()
        at += 1 if not IS_SHORT else 5
    assert at > 300


def test_tasks_have_each_its_own_answer(tmp_path: Path) -> None:
    async def work() -> list[Any]:
        async with open_async_storage(tmp_path / "store.db") as store:
            await store.create_index("n", unique=True, namespace="unique")
            sets = [store.set(f"{n:3}", {"n": n % 250}, namespace="unique") for n in range(256)]
            found = await asyncio.gather(*sets, return_exceptions=True)
            assert await store.list_keys(namespace="unique") == [f"{n:3}" for n in range(250)]
            return found

    found = asyncio.run(work())
    assert [type(one) for one in found] == [int] * 250 + [UniqueIndexError] * 6
