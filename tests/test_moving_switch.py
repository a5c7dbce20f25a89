"""Hazard: the last catch-up before a switch says that both stores are the same, and a change or a deletion is missed.

It does not count what is remembered, looks only at what is newer, and knows the rest by numbers and sums. The short
form lets a few sequences of anything that happens to stores come between catch-ups; the long one some hundred:

    pytest --hypothesis-profile=long -n 0 -s tests/test_moving_switch.py
"""

from __future__ import annotations

import random
import threading
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from test_moving import advance, cancel, change, contents, fill, opened, pair, small_steps, stores

from mycelia_storage import (
    CopyTargetError,
    NamespaceNotFoundError,
    Put,
    Storage,
    StorageError,
    UniqueIndexError,
    catch_up,
    copy,
    deletions,
    moving,
    open_storage,
)
from mycelia_storage.deletions import Ranges
from mycelia_storage.keys import KeyRange
from mycelia_storage.lineage import Lineage, adopted
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["opened", "pair", "small_steps", "stores"]  # fixtures

Pair = tuple[Storage, Storage]


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("must not be asked for")


def change_all(source: Storage) -> None:
    source.set("a", 1, namespace="goes")
    if not any(index.name == "index" for index in source.list_indexes()):
        source.create_index("number", name="index")
    if "bare" in source.list_namespaces():
        source.delete_namespace("bare")
    change(source)


# ---- what is remembered


def test_who_has_copied_finds_deletions_without_counting_the_target(
    pair: Pair, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    fill(source)
    source.set_many(dict.fromkeys("abcdefghij", 1), namespace="x")
    copy(source, target)
    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    monkeypatch.setattr(moving._Copy, "_remove_surplus", refuse)
    for number in range(3):
        advance(source, 5)
        change_all(source)
        source.delete_many([f"key {key:03d}" for key in range(number, 50, 7)])
        source.delete("abcdef"[number], namespace="x")
        source.set_many({f"key {number}{key:03d}": key for key in range(20)})
        catch_up(source, target)
        assert live(target, target._now()) == live(source, target._now())


def test_who_has_not_copied_counts_both_sides(pair: Pair, small_steps: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair
    fill(source)
    source.set_many(dict.fromkeys("abcdefghij", 1), namespace="x")
    copy(source, target)
    deletions._memories.clear()  # as in another process
    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    advance(source, 5)
    source.delete_many(["key 000", "key 030", "key 049"])
    source.delete("c", namespace="x")
    assert catch_up(source, target).deleted == 4
    assert contents(target) == contents(source)


@pytest.mark.parametrize("how", ["nothing", "less", "more", "elsewhere", "of others"])
def test_what_is_remembered_wrongly_does_no_harm(
    stores: Pair, small_steps: None, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source, target = stores
    choose = random.Random(how)
    fill(source)
    copy(source, target)

    def remember_wrongly(*_: object) -> dict[str, Ranges]:
        ranges = Ranges()
        ranges.lows = ["", *(f"key {number:03d}" for number in range(5, 50, 5))]
        ranges.counts = [5 + {"less": -1, "more": 1}.get(how, 0)] * 10
        if how == "nothing":
            ranges = Ranges()
        elif how == "elsewhere":
            ranges.lows, ranges.counts = ["", *sorted({str(choose.random()) for _ in range(5)})], [0, 0, 50, 0, 0, 0]
        return {"default" if how != "of others" else "other": ranges}

    monkeypatch.setattr(moving, "recall", remember_wrongly)
    for _ in range(5):
        advance(source, 5)
        source.delete_many([f"key {choose.randrange(50):03d}" for _ in range(4)])
        source.set_many({f"key {choose.randrange(50):03d}": choose.random() for _ in range(3)})
        catch_up(source, target)
        assert contents(target) == contents(source)


def test_what_somebody_else_has_caught_up_is_not_remembered(stores: Pair, tmp_path: Path, small_steps: None) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    for number in range(5):
        with open_storage(tmp_path / "2.db", clock=target._clock) as again:
            advance(source, 5)
            source.set(f"key {number:03d} of another", 1)
            source.delete(f"key {number:03d}")
            catch_up(source, again)
        advance(source, 5)
        source.delete(f"key {number:03d} of another")
        source.set(f"key {number:03d} of mine", 1)
        catch_up(source, target)
        assert contents(target) == contents(source)


def test_deletions_are_found_where_the_target_has_lost_as_much(pair: Pair, small_steps: None) -> None:
    source, target = pair
    fill(source)  # all in one version: the sums say nothing
    copy(source, target)
    advance(source, 5)
    source.delete("key 003")
    target.delete("key 033")
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_what_was_restored_is_found_where_as_much_was_deleted(pair: Pair, small_steps: None, tmp_path: Path) -> None:
    source, target = pair
    fill(source)
    source.backup(tmp_path / "backup.db")
    source.delete("key 033")
    copy(source, target)
    source.restore(tmp_path / "backup.db")
    source.delete("key 003")
    catch_up(source, target)
    assert contents(target)["rows"] == contents(source)["rows"]


def test_ranges_hold_all_keys_and_become_longer_where_they_would_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deletions, "KEYS_COUNTED", 3)
    monkeypatch.setattr(deletions, "RANGES_KEPT", 8)
    keys = [f"{number:03d}" for number in range(100)]
    ranges = Ranges()
    for start in range(0, 100, 10):
        ranges.add(keys[start : start + 10])
        assert sum(ranges.counts) == start + 10
        assert len(ranges.counts) == len(ranges.lows) <= 8
    spans = ranges.spans()
    assert (spans[0].low, spans[-1].high) == ("", None)
    assert all(one.high == other.low for one, other in pairwise(spans))
    for span, count in zip(spans, ranges.counts, strict=True):
        assert sum(span.low <= key < (span.high or "~") for key in keys) == count
    assert [each.span for each in ranges.with_more(["0", "0501", "999"]).unlike(ranges)] == [
        span for span in spans if any(span.low <= key < (span.high or "~") for key in ("0", "0501", "999"))
    ]


def test_ranges_are_forgotten_where_they_would_take_long(opened: Callable[..., Storage]) -> None:
    target, of_it = opened("memory"), Lineage("it")
    ranges = Ranges()
    ranges.add(["a", "b"])
    for kept, is_kept in (
        ({"default": ranges}, True),
        (None, False),
        ({f"{number}": ranges for number in range(deletions.NAMESPACES_KEPT + 1)}, False),
    ):
        deletions.remember(target, of_it, None, kept)
        found = deletions.recall(target, of_it, None)
        assert found == (kept if is_kept else None)
    ranges.counts[-1] = deletions.KEYS_KEPT + 1
    deletions.remember(target, of_it, None, {"default": ranges})
    assert deletions.recall(target, of_it, None) is None
    ranges.counts[-1] = 1
    deletions.remember(target, of_it, None, {"default": ranges})
    assert deletions.recall(target, of_it, ("default",)) is None, "of other namespaces"


# ---- what is newer


@pytest.mark.parametrize("seconds", [0, 1])
def test_what_has_the_version_of_something_that_went_is_found(pair: Pair, seconds: int) -> None:
    source, target = pair
    advance(source, 1000)
    source.set("ahead", 1)
    advance(source, -1000)
    source.delete("ahead")  # whatever is new from now on has the next version
    source.set_many({"comes 1": 1, "stays": 1})
    copy(source, target)
    advance(source, seconds)
    source.set("comes 2", 2)
    source.delete("comes 1")
    assert source.get_entry("comes 2").version == source.get_entry("stays").version
    deletions._memories.clear()
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_what_was_written_in_a_transaction_that_had_begun_before_is_found(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    fill(source)
    advance(source, 5)
    source.set("written first", 1)
    copy(source, target)
    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    advance(source, -0.5)
    source.set("begun first", 1)
    source.delete("key 000")
    assert source.get_entry("begun first").version < source.get_entry("written first").version
    advance(source, 0.5)
    report = catch_up(source, target)
    assert (report.written, report.deleted) == (1, 1)
    assert contents(target) == contents(source)
    advance(source, 10)
    catch_up(source, target)
    assert catch_up(source, target).written == 0


@pytest.mark.parametrize("call", range(4))
def test_a_catching_up_that_was_killed_goes_on_from_where_it_began(
    stores: Pair, small_steps: None, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    advance(source, 5)
    change_all(source)
    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    together, left = type(target)._together, iter(range(call))

    def run(self: Storage, *args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return together(self, *args, **options)

    monkeypatch.setattr(type(target), "_together", run)
    with pytest.raises(KeyboardInterrupt):
        catch_up(source, target)
    monkeypatch.setattr(type(target), "_together", together)
    advance(source, 5)
    source.set("key 001", "later")
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_a_copy_that_was_not_whole_is_gone_through(pair: Pair, small_steps: None) -> None:
    source, target = pair
    fill(source)
    with pytest.raises(KeyboardInterrupt):
        copy(source, target, progress=lambda step: cancel(step) if step.done else None)
    assert 0 < target.count() < 50
    advance(source, 5)
    source.set("key 001", "later")
    catch_up(source, target)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("first", [None, ["default"], ["other"]])
def test_what_came_up_to_date_in_some_namespaces_only_is_found_in_the_others(
    stores: Pair, small_steps: None, first: list[str] | None
) -> None:
    source, target = stores
    fill(source)
    source.set_many({"a": 1, "b": 2}, namespace="other")
    copy(source, target, namespaces=first)
    for namespaces in (["other"], ["default"], None, ["other"], None):
        advance(source, 5)
        source.set("key 001", source._now())
        source.set("key 002", source._now())
        source.delete("key 001")
        source.set("a", source._now(), namespace="other")
        catch_up(source, target, namespaces=namespaces)
        for name in namespaces or ["default", "other"]:
            assert contents(target, [name])["rows"] == contents(source, [name])["rows"]
    assert contents(target) == contents(source)


def test_what_expires_between_is_not_taken_for_deleted(
    pair: Pair, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    fill(source)
    source.set_many([Put(f"session {number:02d}", 1, ttl=10 * (number + 1)) for number in range(20)])
    copy(source, target)
    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    for number in range(5):
        advance(source, 25)
        advance(target, 25)
        source.delete(f"key {number:03d}")
        assert catch_up(source, target).deleted == 1
        now = max(source._now(), target._now())
        assert contents(target, now=now) == contents(source, now=now)


# ---- both sides at once


def test_a_source_that_takes_long_keeps_no_transaction_waiting(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pair
    monkeypatch.setattr(moving, "_PATIENCE", 0)
    adopt, look, outcomes = moving._Copy.adopt, moving._Copy._look_at_source, list[str]()
    has_asked = threading.Event()

    def noted(*args: Any, **options: Any) -> Any:
        try:
            taken = adopt(*args, **options)
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise
        else:
            outcomes.append("done")
            return taken
        finally:
            has_asked.set()

    def slow(self: Any, sums: Any, *, is_copied: bool) -> Any:
        assert has_asked.wait(30)
        return look(self, sums, is_copied=is_copied)

    monkeypatch.setattr(moving._Copy, "adopt", noted)
    monkeypatch.setattr(moving._Copy, "_look_at_source", slow)
    fill(source)
    copy(source, target)
    assert outcomes == ["_NotYetError", "done"]
    assert contents(target) == contents(source)


@pytest.mark.parametrize("error", [StorageError("cannot be read"), KeyboardInterrupt()])
def test_a_source_that_cannot_be_added_up_leaves_the_target_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source, target = pair
    fill(source)
    copy(source, target)
    before = contents(target), target._reading().tally(None, 0), target._reading().namespace("")
    advance(source, 5)
    source.set("key 001", 1)
    snapshot = source._engine.snapshot()
    snapshot.rollback()

    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(type(snapshot), "tally_and_newer", fail)
    with pytest.raises(type(error)):
        catch_up(source, target)
    assert (contents(target), target._reading().tally(None, 0), target._reading().namespace("")) == before


def test_what_is_written_while_a_server_adds_up_is_not_taken_for_copied(
    opened: Callable[..., Storage], postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = opened("sqlite"), opened("postgres")
    fill(source)
    copy(source, target)
    advance(source, 5000)
    source.set("key 001", "with a version above those of the target")
    advance(target, 10)
    with open_storage(postgres_dsn, schema=target._options.schema, clock=target._clock) as other:

        def write_before(*args: Any) -> Any:
            other.set("key 002", "acknowledged")  # the transaction has read everything, and not written yet
            return adopted(*args)

        monkeypatch.setattr("mycelia_storage.moving.adopted", write_before)
        with pytest.raises(CopyTargetError):
            catch_up(source, target)
        monkeypatch.setattr("mycelia_storage.moving.adopted", adopted)
        with pytest.raises(CopyTargetError, match="was written to since"):
            catch_up(source, target)
    assert target.get("key 002") == "acknowledged"


# ---- whatever happens


class Life:
    """A source to which anything happens, and its copy."""

    def __init__(self, source: Storage, target: Storage, folder: Path, choose: random.Random) -> None:
        self.source, self.target, self.folder, self.choose = source, target, folder, choose
        self.backup: Path | None = None

    def key(self) -> str:
        return f"key {self.choose.randrange(90):03d}"

    def happen(self) -> None:
        source, choose = self.source, self.choose
        namespace, key = choose.choice(["default", "default", "default", "a", "b"]), self.key()
        advance(source, choose.choice([0, 0.000_001, 0.01 * choose.random()]))
        match choose.randrange(20):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6:
                value = {"n": choose.random(), "mail": choose.randrange(200)}
                source.set(key, value, namespace=namespace, ttl=choose.choice([None, None, None, 20]))
            case 7 | 8 | 9 | 10 | 11:
                source.delete(key, namespace=namespace)
            case 12:
                source.delete(key, namespace=namespace)
                source.set(key, {"n": 1}, namespace=namespace)
            case 13:
                source.touch(key, namespace=namespace, ttl=choose.choice([None, 5]))
            case 14 if namespace != "default":
                source.delete_namespace(namespace, recursive=True)
            case 15 if choose.random() < 0.2:
                source.clear(namespace=namespace)
            case 16:
                made = [index.name for index in source.list_indexes()]
                if made and choose.random() < 0.5:
                    source.drop_index(choose.choice(made))
                else:
                    source.create_index("mail", unique=choose.random() < 0.6, namespace=namespace)
            case 17:
                one, other = self.key(), self.key()
                with source.transaction() as tx:
                    here, there = tx.get(one), tx.get(other)
                    if one != other and here and there:
                        tx.delete(one)
                        tx.set(other, here)
                        tx.set(one, there)
            case 18:
                source.set(f"tail {source._now()}", 1, namespace=namespace)
            case _:
                advance(source, 1)

    def disturb(self) -> None:
        source, target, choose = self.source, self.target, self.choose
        match choose.randrange(14):
            case 0 | 1 | 2:
                seconds = choose.choice([-30, -1, 25, 25]) + choose.choice([0, choose.random()])
                advance(source, seconds)
                advance(target, choose.choice([0, seconds, seconds]))
            case 3:
                self.backup = self.folder / f"{source._now()}.backup"
                source.backup(self.backup, overwrite=True)
            case 4 if self.backup is not None:
                source.restore(self.backup)
            case 5 if target.count() and source.count():
                with pytest.raises(KeyboardInterrupt):
                    catch_up(source, target, progress=cancel)
            case 6 if target.count() and source.count():
                names = [name for name in source.list_namespaces() if choose.random() < 0.5]
                if names and all(source.count(namespace=name) for name in names):
                    catch_up(source, target, namespaces=names)
            case 7:
                deletions._memories.clear()
            case 8:
                target.delete_many(choose.sample(target.list_keys(), min(3, target.count())))
            case 9:
                copy(source, target)
            case _:
                pass


def lives(request: pytest.FixtureRequest) -> Iterator[int]:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    yield from range(150) if is_long else [random.randrange(10**9)]


@pytest.mark.parametrize("engines", [("memory", "memory"), ("sqlite", "sqlite"), ("sqlite", "postgres")], ids=str)
def test_whatever_happens_between_both_sides_are_the_same_in_the_end(
    request: pytest.FixtureRequest,
    opened: Callable[..., Storage],
    small_steps: None,
    tmp_path: Path,
    engines: tuple[str, str],
) -> None:
    for seed in lives(request):
        choose = random.Random(seed)
        source, target = (opened(engine, FakeClock()) for engine in engines)
        advance(target, 1)
        life = Life(source, target, tmp_path, choose)
        fill(source)
        copy(source, target)
        for _ in range(10):
            for _ in range(choose.choice([0, 1, 3, 10, 40])):
                try:
                    life.happen()
                except (UniqueIndexError, NamespaceNotFoundError):
                    continue
            life.disturb()
            is_there = target.count() and source.count()
            (catch_up if is_there else copy)(source, target)
            now = max(source._now(), target._now())
            assert live(target, now) == live(source, now), f"seed {seed}"
        source.close()
        target.close()


def live(store: Storage, now: int) -> tuple[Any, ...]:
    """Everything, but for the time at which an index was made: one that was made again is the same."""
    rows = store._reading()
    names = [row for row in rows.namespaces() if row.name]
    entries = {row.name: rows.page(row.name, KeyRange(), now, limit=1_000_000) for row in names}
    return names, entries, [index[:4] for index in rows.indexes()]
