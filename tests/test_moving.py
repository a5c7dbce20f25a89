"""Moving a store into another: between all pairs of engines the copy is the same, text by text, or an error says so.

Hazards: something of an entry is left behind (its version, its expiry, its metadata); a copy that was cancelled starts
over, or takes for done what is not; a deletion is missed when a copy is brought up to date; somebody else's data is
overwritten; what arrived is damaged and nobody looks.
"""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from mycelia_storage import (
    AsyncStorage,
    CapacityError,
    ConfigError,
    CopyMismatchError,
    CopyProgress,
    CopyTargetError,
    InvalidNamespaceError,
    InvalidValueError,
    NamespaceNotFoundError,
    Put,
    Storage,
    StorageClosedError,
    StorageReadOnlyError,
    TransactionError,
    UniqueIndexError,
    catch_up,
    copy,
    deletions,
    field,
    lockstep,
    moving,
    open_storage,
    salvage,
)
from mycelia_storage.engines.engine import NamespaceRow
from mycelia_storage.keys import KeyRange
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psycopg

    from mycelia_storage.engines.engine import Row

PAIRS = [
    ("memory", "memory"), ("memory", "sqlite"), ("sqlite", "memory"), ("sqlite", "sqlite"),
    ("sqlite", "postgres"), ("postgres", "memory"),
]  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Storage]]:
    """Opens a new store of an engine; each was made at another time, with the clock that is given or its own."""
    stores: list[Storage] = []

    def open_one(engine: str, clock: FakeClock | None = None, **options: Any) -> Storage:
        number = len(stores) + 1
        if clock is None:
            clock = FakeClock()
            clock.advance(number)
        target = "memory:" if engine == "memory" else str(tmp_path / f"{number}.db")
        if engine == "postgres":
            target = request.getfixturevalue("postgres_dsn")
            options["schema"] = request.getfixturevalue("new_postgres_schema")()
        stores.append(open_storage(target, clock=clock, **options))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture(params=PAIRS, ids=[f"{one} to {other}" for one, other in PAIRS])
def pair(request: pytest.FixtureRequest, opened: Callable[..., Storage]) -> tuple[Storage, Storage]:
    """A source and a target, of every pair of engines."""
    one, other = request.param
    return opened(one), opened(other)


@pytest.fixture
def stores(opened: Callable[..., Storage]) -> tuple[Storage, Storage]:
    """One pair, where the engine does not matter."""
    return opened("sqlite"), opened("sqlite")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few rows at once that a store of some dozens takes many steps."""
    monkeypatch.setattr(lockstep, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(deletions, "KEYS_COUNTED", 5)
    monkeypatch.setattr(deletions, "RANGES_AT_ONCE", 3)
    monkeypatch.setattr(deletions, "KEYS_READ", 12)


def contents(store: Storage, namespaces: list[str] | None = None, now: int | None = None) -> dict[str, Any]:
    """Everything that is live in a store, to the letter."""
    rows, now = store._reading(), store._now() if now is None else now
    names = [row for row in rows.namespaces() if row.name and (namespaces is None or row.name in namespaces)]
    return {
        "namespaces": names,
        "rows": {row.name: rows.page(row.name, KeyRange(), now, limit=1_000_000) for row in names},
        "indexes": rows.indexes(),
    }


def versions(store: Storage, namespace: str = "default") -> dict[str, int]:
    return {entry.key: entry.version for entry in store.scan(namespace=namespace)}


def fill(store: Storage, count: int = 50) -> None:
    store.set_many({f"key {number:03d}": {"number": number, "mail": f"{number}@x.org"} for number in range(count)})


def advance(store: Storage, seconds: float) -> None:
    clock = store._clock
    assert isinstance(clock, FakeClock)
    clock.advance(seconds)


def cancel(progress: CopyProgress) -> None:
    raise KeyboardInterrupt


# ---- what is kept


def test_everything_of_an_entry_is_kept(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set("text", 'é"\n漢\U0001f600')
    source.set("numbers", [2**63 - 1, -(2**63), 1e23, 0.1, -0.0, 1.0, True, None])
    source.set("order", {"b": 1, "a": {"z": [], "y": {}}})
    source.set("with metadata", 1, metadata={"owner": "Ada", "n": None})
    source.set("with empty metadata", 1, metadata={})
    source.set("expires", 1, ttl=3600)
    advance(source, 5)
    source.merge("order", {"c": 2})
    source.touch("text", ttl=timedelta(days=1))
    source.set("\U0010ffff", 1, namespace="z é")
    source.set("last", 1, namespace="z é")
    source.create_namespace("empty", metadata={"since": "ever"})
    assert copy(source, target).verified == 8
    assert contents(target) == contents(source)
    assert target.get_entry("order") == source.get_entry("order")
    assert target.namespace_info("empty") == source.namespace_info("empty")
    assert target.check().entries == 8


def test_indexes_are_made_again(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)
    source.create_index("number", namespace=None, name="everywhere")
    source.create_index("mail", unique=True)
    source.create_index("-number", "$updated_at", namespace="not there yet")
    assert copy(source, target).indexes == 3
    assert target.list_indexes() == source.list_indexes()
    assert target.query(field("mail") == "3@x.org").keys() == ["key 003"]
    with pytest.raises(UniqueIndexError):
        target.set("other", {"mail": "3@x.org"})
    target.check()


def test_what_has_expired_stays_behind(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set_many([Put("soon", 1, ttl=10), Put("late", 1, ttl=100), Put("stays", 1)])
    advance(source, 10)
    advance(target, 10)
    assert copy(source, target).entries == 2
    assert sorted(versions(target)) == ["late", "stays"]
    assert target.get_entry("late") == source.get_entry("late")


def test_a_copied_expiry_is_kept_by_the_target(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set("session", 1, ttl=100)
    copy(source, target)
    advance(target, 200)
    assert not target.has("session")
    target.optimize()
    assert target._reading().rows("default", ["session"]) == []


@pytest.mark.parametrize("how", ["expired", "deleted", "there"])
def test_no_version_is_used_again_after_a_move(pair: tuple[Storage, Storage], how: str) -> None:
    source, target = pair
    advance(source, 1000)  # the target's clock is far behind
    given = source.set("key", 1, ttl=10 if how == "expired" else None)
    if how == "deleted":
        source.delete("key")
        given = source.set("other", 1)
        source.delete("other")
    if how == "expired":
        advance(source, 11)
    copy(source, target)
    assert target.set("key", 2) > given
    assert target.set("new", 2) > given


def test_a_report_tells_what_was_done(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    source.set("one", 1, namespace="more")
    source.create_index("number")
    first = copy(source, target)
    assert (first.entries, first.namespaces, first.indexes) == (51, 2, 1)
    assert (first.written, first.deleted, first.verified) == (51, 0, 51)
    source.delete("key 003")
    source.set("key 004", 4)
    again = copy(source, target, verify=False)
    assert (again.entries, again.written, again.deleted, again.verified) == (50, 1, 1, 0)


def test_an_empty_store_can_be_copied(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    assert copy(source, target).entries == 0
    assert contents(target) == contents(source)
    assert catch_up(source, target).entries == 0


# ---- going on, and bringing up to date


def test_a_cancelled_copy_goes_on_where_it_was(pair: tuple[Storage, Storage], small_steps: None) -> None:
    source, target = pair
    fill(source)
    source.set_many({f"k{number}": number for number in range(20)}, namespace="more")

    def cancel(at: int) -> Callable[[CopyProgress], None]:
        def look(progress: CopyProgress) -> None:
            if progress.step == "copying" and progress.done >= at:
                raise KeyboardInterrupt

        return look

    arrived = 0
    for at in (1, 20, 45, 60):
        with pytest.raises(KeyboardInterrupt):
            copy(source, target, progress=cancel(at))
        now_there = target.count() + target.count(namespace="more")
        assert at <= now_there < at + 14
        assert now_there >= arrived
        arrived = now_there
    report = copy(source, target)
    assert report.written == 70 - arrived
    assert report.verified == 70
    assert contents(target) == contents(source)


def copied_and_changed(pair: tuple[Storage, Storage]) -> tuple[Storage, Storage]:
    """A source that has changed in every way since it was copied."""
    source, target = pair
    fill(source)
    source.set("a", 1, namespace="goes")
    source.create_index("number", name="index")
    source.create_index("x", namespace="goes")
    copy(source, target)
    change(source)
    return pair


def test_a_copy_of_a_changed_source_takes_up_what_changed(pair: tuple[Storage, Storage], small_steps: None) -> None:
    source, target = copied_and_changed(pair)
    report = copy(source, target)
    assert contents(target)["rows"] == contents(source)["rows"]
    assert contents(target) == contents(source)
    assert report.written < 15
    target.check()


def test_catching_up_finds_everything(pair: tuple[Storage, Storage], small_steps: None) -> None:
    source, target = copied_and_changed(pair)
    report = catch_up(source, target)
    assert contents(target) == contents(source)
    assert report.written == report.verified == 8
    assert report.deleted == 15
    assert catch_up(source, target).written == 0
    target.check()


def change(source: Storage) -> None:
    """Something of everything that can happen to a store."""
    advance(source, 1)
    source.set("key 003", "new value")
    source.touch("key 004", ttl=50)
    source.set_metadata("key 005", {"only": "metadata"})
    source.set_many({f"later {number}": number for number in range(3)})
    source.delete_many([f"key {number:03d}" for number in range(20, 34)])
    source.delete_namespace("goes", recursive=True)
    source.set("b", 1, namespace="comes")
    source.create_namespace("bare", metadata={"a": 1})
    source.drop_index("index")
    source.create_index("-number", name="index")
    # Deleted and written again.
    source.delete("key 049")
    source.set("key 049", 1)


def test_a_namespace_that_was_made_anew_is_caught_up(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set_many({"a": 1, "b": 2}, namespace="x")
    copy(source, target)
    source.delete_namespace("x", recursive=True)
    advance(source, 1)
    source.create_namespace("x", metadata={"again": True})
    source.set("b", 3, namespace="x")
    catch_up(source, target)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("seed", range(3))
def test_after_any_changes_catching_up_gives_the_same(
    pair: tuple[Storage, Storage], small_steps: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(moving, "MOST_NEWER", 20)
    source, target = pair
    choose = random.Random(seed)
    fill(source)
    copy(source, target)
    for _ in range(12):
        for _ in range(choose.choice([0, 1, 5, 30])):
            change_at_random(source, choose)
        if choose.random() < 0.3:
            seconds = choose.choice([-20, 30])  # clocks are set back, too
            advance(source, seconds)
            advance(target, seconds)
        catch_up(source, target)
        now = max(source._now(), target._now())
        assert contents(target, now=now) == contents(source, now=now)
    assert copy(source, target).written == 0


def change_at_random(source: Storage, choose: random.Random) -> None:
    namespace = choose.choice(["default", "default", "other"])
    key = f"key {choose.randrange(80):03d}"
    what = choose.randrange(8)
    if what < 4:
        source.set(key, choose.random(), namespace=namespace, ttl=choose.choice([None, None, None, 15]))
    elif what < 7:
        source.delete(key, namespace=namespace)
    elif choose.random() < 0.2:
        source.clear(namespace=namespace)
    else:
        source.set_many({f"key {number:03d}": 1 for number in range(0, 80, 9)}, namespace=namespace)


def test_what_a_restored_source_holds_is_found(stores: tuple[Storage, Storage], tmp_path: Path) -> None:
    source, target = stores
    fill(source)
    source.backup(tmp_path / "backup.db")
    source.set("key 001", "changed")
    copy(source, target)
    source.restore(tmp_path / "backup.db")  # where versions are smaller than those that were copied
    catch_up(source, target)
    assert contents(target) == contents(source)


@pytest.mark.parametrize("is_only", [False, True], ids=["several namespaces", "one"])
def test_catching_up_reads_no_more_than_it_has_to(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, small_steps: None, is_only: bool
) -> None:
    source, target = pair
    fill(source, 200)
    if not is_only:
        source.set_many(dict.fromkeys("abc", 1), namespace="x")
    copy(source, target)
    source.set("key 100", 1)
    source.delete_many(["key 003", "key 060", "key 061", "key 150", "key 199"])

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("went through everything")

    monkeypatch.setattr(moving._Copy, "copy_everything", refuse)
    assert catch_up(source, target).written == 1
    assert contents(target) == contents(source)


@pytest.mark.parametrize("how", ["cancelled", "a lot"])
def test_catching_up_goes_on_where_a_unique_index_is_new(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source, target = pair
    source.set_many({"p": {"u": 1}, "q": {"u": 1}})
    copy(source, target)
    source.set("q", {"u": 2})
    source.create_index("u", unique=True)
    if how == "a lot":
        monkeypatch.setattr(moving, "MOST_NEWER", 0)
    else:
        with pytest.raises(KeyboardInterrupt):
            catch_up(source, target, progress=cancel)
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_catching_up_goes_on_where_it_was_killed_while_unique_values_were_exchanged(
    stores: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    monkeypatch.setattr(lockstep, "ROWS_AT_ONCE", 2)
    source.create_index("u", unique=True, name="u")
    together = type(target)._together
    is_killed, steps = True, 0
    while is_killed:
        source.clear_all()
        source.set_many({"k1": {"u": 1}, "k5": {"u": 5}, "x": 0, "y": 0})
        copy(source, target)
        with source.transaction() as tx:
            tx.clear()
            tx.set_many({"k1": {"u": 5}, "k2": 0, "k3": 0, "k5": {"u": 1}})
        steps, left = steps + 1, iter(range(steps))

        def run(self: Storage, *args: Any, left: Iterator[int] = left, **options: Any) -> Any:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return together(self, *args, **options)

        monkeypatch.setattr(type(target), "_together", run)
        try:
            catch_up(source, target)
            is_killed = False
        except KeyboardInterrupt:
            pass
        monkeypatch.setattr(type(target), "_together", together)
        catch_up(source, target)
        assert contents(target) == contents(source)
    assert steps > 4


def test_what_has_expired_by_the_clock_of_the_source_is_in_nobodys_way(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    advance(target, -10)
    source.create_index("seat", unique=True, name="seat")
    source.set("stays", 1)
    source.set("hold 1", {"seat": 7}, ttl=5)
    copy(source, target)
    advance(source, 6)
    source.set("hold 2", {"seat": 7})
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_a_copy_of_which_everything_has_expired_by_the_clock_of_the_source_is_gone_on_with(
    pair: tuple[Storage, Storage],
) -> None:
    source, target = pair
    advance(target, -10)
    source.set("hold 1", 1, ttl=5)
    copy(source, target)
    advance(source, 6)
    source.set("hold 2", 2)
    assert copy(source, target).entries == 1
    target.set("mine", 1, ttl=1)
    advance(source, 10)
    source.set("hold 3", 3)
    target.delete("hold 2")
    with pytest.raises(CopyTargetError, match="'mine' in namespace 'default' was written to the target itself"):
        copy(source, target)
    assert target.get("mine") == 1


def test_a_unique_index_is_made_without_what_has_expired_by_the_clock_of_the_source(
    pair: tuple[Storage, Storage],
) -> None:
    source, target = pair
    advance(target, -10)
    source.set("stays", 1)
    source.set("hold 1", {"seat": 7}, ttl=5)
    copy(source, target)
    advance(source, 6)
    source.set("hold 2", {"seat": 7})
    source.create_index("seat", unique=True)
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_entries_that_exchanged_unique_values_are_caught_up(pair: tuple[Storage, Storage], small_steps: None) -> None:
    source, target = pair
    fill(source)
    source.create_index("mail", unique=True)
    copy(source, target)
    with source.transaction() as tx:  # neighbours, and two that are far from each other
        for one, other in ((3, 4), (10, 40)):
            tx.set(f"key {one:03d}", {"mail": "for a moment"})
            tx.set(f"key {other:03d}", {"mail": f"{one}@x.org"})
            tx.set(f"key {one:03d}", {"mail": f"{other}@x.org"})
        tx.delete("key 020")
        tx.set("a key before", {"mail": "20@x.org"})
    catch_up(source, target)
    assert contents(target) == contents(source)
    with pytest.raises(UniqueIndexError):
        target.set("other", {"mail": "10@x.org"})
    target.check()


# ---- whose target it is


def refused(source: Storage, target: Storage, **options: Any) -> str:
    """The message of a copy that is refused before anything is written."""
    before = contents(target), target._reading().tally(None, 0)
    with pytest.raises(CopyTargetError) as error:
        copy(source, target, **options)
    assert (contents(target), target._reading().tally(None, 0)) == before
    return str(error.value)


def test_a_store_with_entries_of_its_own_is_refused(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)
    target.set("mine", 1, namespace="elsewhere")
    assert "is no copy of this source" in refused(source, target)
    assert "is no copy of this source" in refused(source, target, namespaces=["default"])


def test_the_copy_of_another_store_is_refused(opened: Callable[..., Storage]) -> None:
    source, other, target = opened("memory"), opened("memory"), opened("sqlite")
    fill(source)
    fill(other)
    copy(other, target)
    assert "is no copy of this source" in refused(source, target)
    with pytest.raises(CopyTargetError):
        catch_up(source, target)


@pytest.mark.parametrize("verb", ["set", "touch", "new key", "other namespace"])
def test_a_copy_that_was_written_to_is_refused(pair: tuple[Storage, Storage], verb: str) -> None:
    source, target = pair
    advance(target, -500)  # whatever its clock says
    fill(source)
    copy(source, target)
    match verb:
        case "set":
            target.set("key 001", "new")
        case "touch":
            target.touch("key 001", ttl=None)
        case "new key":
            target.set("new", "new")
        case _:
            target.set("new", "new", namespace="new")
    advance(source, 60)
    source.set("key 001", "newer")
    assert "was written to since" in refused(source, target)
    with pytest.raises(CopyTargetError, match="was written to since"):
        catch_up(source, target)


@pytest.mark.parametrize("bring", [copy, catch_up])
@pytest.mark.parametrize("what", ["replaced", "removed", "namespace"])
def test_what_is_written_to_the_target_meanwhile_is_not_lost(
    pair: tuple[Storage, Storage], small_steps: None, bring: Callable[..., Any], what: str
) -> None:
    source, target = pair
    fill(source)
    copy(source, target)
    advance(source, 60)
    source.set("key 001", "newer")
    source.set("key 040", "newer")
    source.delete("key 002")
    key, namespace = {
        "replaced": ("key 040", "default"), "removed": ("mine", "default"), "namespace": ("mine", "new"),
    }[what]  # fmt: skip

    def write(progress: CopyProgress) -> None:
        if progress.step == "copying" and progress.done == 0:
            target.set(key, "acknowledged", namespace=namespace)

    with pytest.raises(CopyTargetError, match=f"{key!r} in namespace {namespace!r} was written to the target itself"):
        bring(source, target, progress=write)
    assert target.get(key, namespace=namespace) == "acknowledged"
    assert "was written to since" in refused(source, target)


def test_tasks_that_share_a_commit_do_not_hide_what_was_written(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set_many({"a": 1, "b": 2})
    copy(source, target)
    target.set_many({"order": "paid", "a": 100})

    async def use() -> None:
        store = AsyncStorage(target)
        await asyncio.gather(store.set("job", 1), store.take("job"))
        await store._stop()

    asyncio.run(use())
    with pytest.raises(CopyTargetError, match="was written to since"):
        catch_up(source, target)
    assert dict(target.namespace("default")) == {"a": 100, "b": 2, "order": "paid"}


def test_stores_in_memory_that_were_made_at_the_same_time_are_told_apart(clock: FakeClock) -> None:
    with (
        open_storage("memory:", clock=clock) as one,
        open_storage("memory:", clock=clock) as other,
        open_storage("memory:", clock=clock) as target,
    ):
        one.set("k", "of one")
        other.set("z", "of the other")
        copy(one, target)
        assert "is no copy of this source" in refused(other, target)
        assert catch_up(one, target).entries == 1


def test_the_copy_of_another_store_is_refused_on_every_engine(
    pair: tuple[Storage, Storage], opened: Callable[..., Storage]
) -> None:
    """Though nobody wrote to it: all that it holds is the other one's, which may be there no more."""
    source, target = pair
    fill(source)
    copy(source, target)
    other = opened(source.get_status().backend.removesuffix("ql"))
    other.set("k", "of the other")
    assert "is no copy of this source" in refused(other, target)
    with pytest.raises(CopyTargetError, match="is no copy of this source"):
        catch_up(other, target)
    assert catch_up(source, target).written == 0


def test_a_store_that_was_made_at_the_same_time_as_one_with_a_name_is_known_to_be_no_copy(
    clock: FakeClock, tmp_path: Path
) -> None:
    with (
        open_storage("memory:", clock=clock) as source,
        open_storage(tmp_path / "target.db", clock=clock) as target,
    ):
        source.set("k", "of the source")
        target.set("z", "its own")
        assert source.namespace_info("default").created_at == target.namespace_info("default").created_at
        assert "is no copy of this source" in refused(source, target)
        assert target.list_keys() == ["z"]


def test_the_copy_of_a_copy_is_none_of_the_first_source(opened: Callable[..., Storage]) -> None:
    first, second, third = opened("sqlite"), opened("sqlite"), opened("memory")
    fill(first)
    copy(first, second)
    second.set("order", "paid")
    copy(second, third)
    assert "is no copy of this source" in refused(first, third)
    assert catch_up(second, third).written == 0
    assert third.get("order") == "paid"


def test_a_copy_that_says_nothing_of_its_source_is_refused(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    target._together(lambda rows, _: rows.unregister(""))  # as an earlier version left it
    assert "it is not known what they are" in refused(source, target)


@pytest.mark.parametrize("kept", ["[]", "{}", '{"floor":"1","of":[],"born":true}', "{"])
def test_a_copy_that_says_nonsense_of_its_source_is_refused(stores: tuple[Storage, Storage], kept: str) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    target._together(lambda rows, _: rows.place_namespace(NamespaceRow("", kept, 1)))
    assert "it is not known what they are" in refused(source, target)


def test_a_copy_whose_versions_were_given_anew_is_refused(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    target.migrate(to=1)
    target.migrate()
    refused(source, target)


def test_a_copy_that_is_restored_just_before_it_is_brought_up_to_date_is_refused(
    opened: Callable[..., Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, source, target = opened("sqlite"), opened("sqlite"), opened("sqlite")
    other.set("order", "paid")
    other.backup(tmp_path / "backup.db")
    fill(source)
    copy(source, target)
    adopt = moving._Copy.adopt

    def restore_before(*args: Any, **options: Any) -> Any:
        target.restore(tmp_path / "backup.db")  # where versions are smaller than those that were copied
        return adopt(*args, **options)

    monkeypatch.setattr(moving._Copy, "adopt", restore_before)
    with pytest.raises(CopyTargetError, match="restored"):
        catch_up(source, target)
    assert target.get("order") == "paid"


def test_a_salvaged_copy_is_not_overwritten(stores: tuple[Storage, Storage], tmp_path: Path) -> None:
    source, target = stores
    fill(source)
    copy(source, target)
    advance(target, 1)
    target.set("order", "paid")
    target.close()
    report = salvage(tmp_path / "2.db", tmp_path / "salvaged.db")
    assert report.namespaces == 1
    with open_storage(tmp_path / "salvaged.db") as salvaged:
        refused(source, salvaged)


def test_what_is_written_to_an_empty_target_meanwhile_is_not_lost(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)

    def write(progress: CopyProgress) -> None:
        if progress.step == "copying" and progress.done == 0:
            target.set("key 040", "acknowledged")

    with pytest.raises(CopyTargetError, match="'key 040' in namespace 'default' was written to the target itself"):
        copy(source, target, progress=write)
    assert target.get("key 040") == "acknowledged"


@pytest.mark.parametrize("is_empty", [True, False])
def test_what_is_written_before_a_copy_is_known_as_one_is_not_lost(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    source, target = pair
    fill(source)
    if not is_empty:
        copy(source, target)
    advance(source, 5000)
    source.set("key 001", "with a version above those of the target")
    advance(target, 10)
    adopt = moving._Copy.adopt

    def write_before(*args: Any, **options: Any) -> Any:
        target.set("key 001", "acknowledged")
        return adopt(*args, **options)

    monkeypatch.setattr(moving._Copy, "adopt", write_before)
    with pytest.raises(CopyTargetError, match="is no copy of this source" if is_empty else "was written to since"):
        copy(source, target)
    assert target.get("key 001") == "acknowledged"


def test_a_copy_that_was_written_to_is_refused_where_versions_lie_ahead_of_the_clock(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    advance(source, 10**6)
    fill(source)
    advance(source, -(10**6))
    copy(source, target)
    target.set("mine", "acknowledged")
    target.set("key 001", "acknowledged")
    target.set("other", 1)
    target.delete("other")  # that raises the floor above the versions of those
    assert "was written to since" in refused(source, target)
    with pytest.raises(CopyTargetError, match="was written to since"):
        catch_up(source, target)


def test_removals_of_what_lies_ahead_of_the_clock_are_caught_up(
    pair: tuple[Storage, Storage], small_steps: None
) -> None:
    source, target = pair
    advance(source, 10**6)
    fill(source)
    advance(source, -(10**6))
    source.set("behind", 1)
    copy(source, target)
    source.set("key 003", "newer")
    advance(source, -100)
    for key in ("key 001", "key 002", "behind"):
        source.delete(key)
    advance(target, 10)
    catch_up(source, target)
    assert contents(target) == contents(source)
    source.clear_all()  # only its floor knows of them now
    catch_up(source, target)
    assert contents(target) == contents(source)


def test_a_removal_of_the_newest_entry_is_caught_up(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)
    advance(source, 60)
    source.set("newest", 1)
    copy(source, target)
    advance(source, 60)
    source.delete("newest")
    assert catch_up(source, target).deleted == 1
    assert contents(target) == contents(source)


def test_without_resume_the_target_has_to_be_empty(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    copy(source, target, resume=False)
    assert "resume=False" in refused(source, target, resume=False)


def test_there_is_nothing_to_catch_up_in_an_empty_target(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    with pytest.raises(CopyTargetError, match="a copy comes first"):
        catch_up(source, target)
    assert target.count() == 0


def test_a_target_whose_entries_have_all_expired_is_empty(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)
    advance(target, 5000)
    target.set("key 001", "old", ttl=1)
    target.create_namespace("left over")
    advance(target, 1)
    copy(source, target)
    copy(source, target)
    assert contents(target) == contents(source)


def test_indexes_of_the_target_itself_stay(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    target.create_index("number", name="mine")
    copy(source, target)
    catch_up(source, target)
    assert [index.name for index in target.list_indexes()] == ["mine"]


@pytest.mark.parametrize("bring", [catch_up, copy])
@pytest.mark.parametrize("how", ["dropped", "made a plain one"])
def test_a_unique_index_that_the_source_gave_up_is_in_nobodys_way(
    pair: tuple[Storage, Storage], bring: Callable[..., Any], how: str
) -> None:
    source, target = pair
    source.create_index("mail", unique=True, name="mail")
    source.create_index("number", name="stays")
    source.set("1", {"mail": "x"})
    target.create_index("number", name="mine")
    target.create_index("number", name="stays")
    copy(source, target)
    source.drop_index("mail")
    source.drop_index("stays")  # which the target had before
    if how == "made a plain one":
        source.create_index("mail", name="mail")
    advance(source, 1)
    source.set("2", {"mail": "x"})
    bring(source, target)
    assert contents(target)["rows"] == contents(source)["rows"]
    kept = ["mail", "mine", "stays"] if how == "made a plain one" else ["mine", "stays"]
    assert [index.name for index in target.list_indexes()] == kept
    assert not any(index.unique for index in target.list_indexes())


def test_an_index_of_a_namespace_that_was_not_chosen_stays(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    source.set_many({"a": 1}, namespace="one")
    source.set_many({"b": 2}, namespace="other")
    source.create_index("number", namespace="other")
    copy(source, target)
    advance(source, 1)
    source.set("a", 2, namespace="one")
    catch_up(source, target, namespaces=["one"])
    assert target.list_indexes() == source.list_indexes()
    source.drop_index(source.list_indexes()[0].name)
    catch_up(source, target)
    assert target.list_indexes() == []


def test_a_unique_index_of_the_target_itself_refuses_and_loses_nothing(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    source.set_many({"a": {"n": 1}, "b": {"n": 1}})
    target.create_index("n", unique=True, name="mine")
    with pytest.raises(UniqueIndexError) as error:
        copy(source, target)
    assert error.value.index == "mine"
    target.drop_index("mine")
    copy(source, target)
    assert contents(target) == contents(source)


def test_one_postgres_schema_is_copied_into_another(opened: Callable[..., Storage], postgres_dsn: str) -> None:
    source, target = opened("postgres"), opened("postgres")
    fill(source)
    source.create_index("number")
    copy(source, target)
    source.set("key 001", "new")
    source.delete("key 002")
    catch_up(source, target)
    assert contents(target) == contents(source)
    with (
        open_storage(postgres_dsn, schema=source._options.schema) as again,
        pytest.raises(ConfigError, match="same store"),
    ):
        copy(source, again)


def test_one_postgres_database_is_copied_into_another(
    opened: Callable[..., Storage], postgres_dsn: str, postgres_connection: psycopg.Connection[Any]
) -> None:
    """With a schema of the same name, on the same server."""
    from psycopg.conninfo import make_conninfo

    source = opened("postgres")
    fill(source)
    name = f"{source._options.schema}_other"
    postgres_connection.execute(f"create database {name}".encode())
    try:
        there = {"dsn": make_conninfo(postgres_dsn, dbname=name), "schema": source._options.schema}
        with open_storage({"backend": "postgresql", "options": there}) as target:
            copy(source, target)
            assert contents(target) == contents(source)
    finally:
        postgres_connection.execute(f"drop database {name} with (force)".encode())


def test_one_postgres_server_is_copied_to_another(opened: Callable[..., Storage], postgres_dsn: str) -> None:
    """With a database and a schema of the same names: where to move when a machine is given up."""
    from mycelia_storage.testing.postgres_server import PostgresServer

    source = opened("postgres")
    fill(source)
    with (
        PostgresServer() as server,
        open_storage(server.dsn(), schema=source._options.schema) as target,
    ):
        copy(source, target)
        assert contents(target) == contents(source)


def test_a_store_is_not_copied_into_itself(opened: Callable[..., Storage], tmp_path: Path) -> None:
    source = opened("sqlite")
    fill(source)
    with pytest.raises(ConfigError, match="same store"):
        copy(source, source)
    with open_storage(source.get_status().target) as again, pytest.raises(ConfigError, match="same store"):
        copy(source, again)
    (tmp_path / "folder").symlink_to(tmp_path)
    with (
        open_storage(tmp_path / "folder" / "1.db") as again,
        pytest.raises(ConfigError, match="same store"),
    ):
        copy(source, again)


def test_a_server_is_known_by_whatever_name(opened: Callable[..., Storage], postgres_dsn: str, tmp_path: Path) -> None:
    source = opened("postgres")
    fill(source)
    host = urlsplit(postgres_dsn).netloc.rpartition("@")[2].rpartition(":")[0]
    other = "localhost"
    if unquote(host).startswith("/"):
        (tmp_path / "s").symlink_to(unquote(host))
        other = quote(str(tmp_path / "s"), safe="")
    with open_storage(postgres_dsn.replace(host, other), schema=source._options.schema) as again:
        assert again.get_status().target != source.get_status().target
        for bring in (copy, catch_up):
            with pytest.raises(ConfigError, match="same store"):
                bring(source, again)
    assert source.count() == 50


# ---- some namespaces


def test_some_namespaces_are_copied(pair: tuple[Storage, Storage]) -> None:
    source, target = pair
    fill(source)
    source.create_namespace("users", metadata={"a": 1})
    source.set_many({"ada": 1, "bob": 2}, namespace="users")
    source.set("cart", 1, namespace="carts")
    source.create_index("name", namespace="users")
    source.create_index("name", namespace="carts")
    source.create_index("name", namespace=None)
    report = copy(source, target, namespaces=["users"])
    assert (report.entries, report.namespaces, report.indexes) == (2, 1, 2)
    assert target.list_namespaces() == ["default", "users"]
    assert contents(target, ["users"])["rows"] == contents(source, ["users"])["rows"]
    assert target.namespace_info("users") == source.namespace_info("users")
    assert target.count() == 0
    source.delete("ada", namespace="users")
    source.set("other cart", 1, namespace="carts")
    assert catch_up(source, target, namespaces=["users", "users"]).deleted == 1
    assert target.list_namespaces() == ["default", "users"]
    copy(source, target)
    assert contents(target) == contents(source)
    # Then a part of it again: the rest is left alone.
    source.delete("bob", namespace="users")
    source.delete("cart", namespace="carts")
    catch_up(source, target, namespaces=["users"])
    assert target.count(namespace="users") == 0
    assert target.count(namespace="carts") == 2


def test_a_namespace_that_is_not_there_is_named(stores: tuple[Storage, Storage]) -> None:
    source, target = stores
    fill(source)
    with pytest.raises(NamespaceNotFoundError, match="'nobody', 'nothing'"):
        copy(source, target, namespaces=["nothing", "default", "nobody"])
    assert target.count() == 0


# ---- when something goes wrong


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda rows: [row._replace(value='"x"') if row.key == "key 011" else row for row in rows], "key 011"),
        (lambda rows: [row._replace(expires_at=None) for row in rows], "expires"),
        (lambda rows: [row._replace(metadata=None) for row in rows], "described"),
        (lambda rows: [row._replace(created_at=row.created_at + (row.key == "key 020")) for row in rows], "key 020"),
        (lambda rows: [row._replace(version=row.version + (row.key == "key 020")) for row in rows], "key 020"),
        (lambda rows: [row for row in rows if row.key != "key 030"], "key 030"),
        (lambda rows: [*rows, rows[0]._replace(key="zz")], "zz"),
    ],
    ids=["value", "expiry", "metadata", "time", "version", "skipped", "added"],
)
def test_what_arrived_otherwise_is_named(
    pair: tuple[Storage, Storage],
    monkeypatch: pytest.MonkeyPatch,
    small_steps: None,
    damage: Callable[[list[Row]], list[Row]],
    named: str,
) -> None:
    source, target = pair
    fill(source)
    source.set("expires", 1, ttl=1000)
    source.set("described", 1, metadata={"a": 1})
    read = lockstep.read
    monkeypatch.setattr(moving, "read", lambda *args, **options: damage(read(*args, **options)))
    with pytest.raises(CopyMismatchError) as error:
        copy(source, target)
    assert ("default", named) in error.value.keys
    assert error.value.count == len(error.value.keys) == 1
    assert repr(named) in str(error.value)


def test_what_expires_while_it_is_caught_up_is_not_missed(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    fill(source)
    copy(source, target)
    advance(source, 1)
    source.set_many([Put("session", 1, ttl=5), Put("key 001", "newer")])
    read_back = moving._Copy._read_back

    def expire(running: Any, *args: Any) -> None:
        advance(target, 10)
        target.optimize()  # as the thread does that removes what has expired
        read_back(running, *args)

    monkeypatch.setattr(moving._Copy, "_read_back", expire)
    assert catch_up(source, target).written == 2
    assert not target.has("session")
    assert target.get("key 001") == "newer"


@pytest.mark.parametrize("fault", ["skipped", "damaged"])
def test_what_was_caught_up_is_read_back(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    source, target = pair
    fill(source)
    copy(source, target)
    source.set("key 007", "new")
    session = target._engine.begin(wait=None)
    session.rollback()
    place = type(session).place

    def lose(self: Any, namespace: str, rows: list[Row], now: int) -> None:
        if fault == "damaged":
            place(self, namespace, [row._replace(value="1") for row in rows], now)

    monkeypatch.setattr(type(session), "place", lose)
    with pytest.raises(CopyMismatchError) as error:
        catch_up(source, target)
    assert error.value.keys == (("default", "key 007"),)


def test_without_verification_versions_are_compared_still(
    stores: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = stores
    fill(source)
    read = lockstep.read
    monkeypatch.setattr(moving, "read", lambda *args, **options: read(*args, **options)[1:])
    with pytest.raises(CopyMismatchError) as error:
        copy(source, target, verify=False)
    assert error.value.keys == (("default", "key 000"),)


def test_a_target_that_is_too_small_says_so(opened: Callable[..., Storage], small_steps: None) -> None:
    source, target = opened("sqlite"), opened("memory", capacity=30)
    fill(source)
    with pytest.raises(CapacityError):
        copy(source, target)
    assert 0 < target.count() <= 30
    assert source.count() == 50


@pytest.mark.parametrize("what", ["value", "metadata"])
def test_an_entry_that_the_target_would_not_take_is_named(opened: Callable[..., Storage], what: str) -> None:
    source, target = opened("memory"), opened("sqlite", max_value_bytes=1000)
    fill(source)
    source.set("big", "x" * 2000 if what == "value" else 1, metadata={"a": "x" * 2000} if what != "value" else None)
    with pytest.raises(InvalidValueError, match=r"'big' in namespace 'default' has 2,00\d bytes"):
        copy(source, target)
    source.delete("big")
    assert copy(source, target).entries == 50


def test_memory_is_bounded_by_bytes_and_not_by_entries(
    pair: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    source.set_many({f"key {number:03d}": "x" * 100 * (number % 5) for number in range(60)})
    source.set("one that is longer than all", "x" * 5000)
    monkeypatch.setattr(lockstep, "BYTES_AT_ONCE", 1000)
    read, sizes = lockstep.read, list[int]()

    def noted(*args: Any, **options: Any) -> list[Row]:
        rows = read(*args, **options)
        sizes.append(sum(len(row.value) for row in rows))
        return rows

    monkeypatch.setattr(moving, "read", noted)
    copy(source, target)
    assert contents(target) == contents(source)
    *_, second, greatest = sorted(sizes)
    assert greatest == 5002
    assert 800 < second <= 1000


def test_the_last_commit_waits_for_the_disk(stores: tuple[Storage, Storage], monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = stores
    fill(source)
    begin, durable = target._engine.begin, list[bool]()

    def noted(**options: Any) -> Any:
        durable.append(options["durable"])
        return begin(**options)

    monkeypatch.setattr(target._engine, "begin", noted)
    copy(source, target)
    source.set("key 001", 1)
    for bring in (copy, catch_up):
        bring(source, target)
        assert durable[-1], "and all before it, in the -wal of one file"
        durable.clear()


def test_progress_tells_each_step(stores: tuple[Storage, Storage], small_steps: None) -> None:
    source, target = stores
    fill(source)
    source.create_index("number")
    told: list[CopyProgress] = []
    copy(source, target, progress=told.append)
    assert list(dict.fromkeys(progress.step for progress in told)) == ["copying", "indexing", "verifying"]
    for step, total in (("copying", 50), ("indexing", 1), ("verifying", 50)):
        done = [progress.done for progress in told if progress.step == step]
        assert done == sorted(done)
        assert (done[0], done[-1]) == (0, total)
        assert {progress.total for progress in told if progress.step == step} == {total}
    assert len(told) > 15


@pytest.mark.parametrize("step", ["copying", "indexing", "verifying"])
def test_what_progress_raises_cancels(stores: tuple[Storage, Storage], step: str) -> None:
    source, target = stores
    fill(source)
    source.create_index("number")

    def cancel(progress: CopyProgress) -> None:
        if progress.step == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        copy(source, target, progress=cancel)
    copy(source, target)
    assert contents(target) == contents(source)


def test_the_source_is_only_read(opened: Callable[..., Storage], tmp_path: Path) -> None:
    source, target = opened("sqlite"), opened("memory")
    fill(source)
    source.set("old", 1, ttl=1)
    advance(source, 10)
    with open_storage(tmp_path / "1.db", read_only=True, clock=source._clock) as read_only:
        assert copy(read_only, target).entries == 50
    assert source._reading().rows("default", ["old"])


def test_a_target_that_cannot_be_written_is_told_at_once(opened: Callable[..., Storage], tmp_path: Path) -> None:
    source, target = opened("memory"), opened("sqlite")
    fill(source)
    with open_storage(tmp_path / "2.db", read_only=True) as read_only, pytest.raises(StorageReadOnlyError):
        copy(source, read_only)
    with target.transaction(), pytest.raises(TransactionError):
        copy(source, target)
    with source.transaction(), pytest.raises(TransactionError):
        copy(source, target)
    target.close()
    with pytest.raises(StorageClosedError):
        copy(source, target)
    with pytest.raises(StorageClosedError):
        copy(target, source)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"namespaces": "default"}, InvalidValueError),
        ({"namespaces": []}, InvalidValueError),
        ({"namespaces": 7}, InvalidValueError),
        ({"namespaces": ["*"]}, InvalidNamespaceError),
        ({"verify": 1}, InvalidValueError),
        ({"resume": "yes"}, InvalidValueError),
        ({"progress": 3}, InvalidValueError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    stores: tuple[Storage, Storage], options: dict[str, Any], error: type[Exception]
) -> None:
    source, target = stores
    fill(source)
    with pytest.raises(error):
        copy(source, target, **options)
    assert target.count() == 0


def test_only_stores_are_copied(stores: tuple[Storage, Storage]) -> None:
    source, _ = stores
    for other in ("path.db", None, AsyncStorage(source)):
        with pytest.raises(InvalidValueError, match="a Storage is needed"):
            copy(source, other)  # type: ignore[arg-type]
        with pytest.raises(InvalidValueError, match="a Storage is needed"):
            copy(other, source)  # type: ignore[arg-type]
