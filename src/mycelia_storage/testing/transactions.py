"""The contract of transactions: what they keep together, what they hide, and how they end.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    BatchError,
    InvalidValueError,
    KeyExistsError,
    KeyNotFoundError,
    StorageBusyError,
    StorageReadOnlyError,
    TransactionConflictError,
    TransactionError,
    VersionConflictError,
)
from mycelia_storage.testing.base import ContractBase, in_another_thread, is_refused
from mycelia_storage.testing.calls import READS, STORE_CALLS, TRANSACTION_CALLS, WRITES
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mycelia_storage import Storage, Transaction
    from mycelia_storage.testing.clock import FakeClock


class OwnError(Exception):
    """An error of the user's own."""


class TransactionContract(ContractBase):
    """One transaction: commit, rollback, isolation, misuse."""

    def test_leaving_the_block_commits(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            tx.set("b", 2, namespace="place")
            tx.delete("missing")
        assert (store.get("a"), store.get("b", namespace="place")) == (1, 2)
        assert store.list_namespaces() == ["default", "place"]

    def test_an_exception_rolls_back_and_goes_on(self, store: Storage) -> None:
        store.set("a", 1, metadata={"by": "me"})
        before = store.get_entry("a")
        with pytest.raises(OwnError), store.transaction() as tx:
            tx.set("a", 2, metadata={})
            tx.set("b", 2, namespace="place")
            tx.create_namespace("made")
            tx.clear_all()
            raise OwnError
        assert not difference(store.get_entry("a"), before)
        assert store.list_namespaces() == ["default"]

    def test_an_exit_of_the_process_rolls_back_too(self, store: Storage) -> None:
        with pytest.raises(KeyboardInterrupt), store.transaction() as tx:
            tx.set("a", 1)
            raise KeyboardInterrupt
        assert store.count() == 0
        store.set("a", 2)

    def test_rollback_ends_the_block_quietly(self, store: Storage) -> None:
        store.set("a", 1)
        with store.transaction() as tx:
            tx.set("a", 2)
            tx.set("b", 2)
            tx.rollback()
        assert store.get_many(["a", "b"]) == {"a": 1}

    def test_rollback_happens_at_once(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            tx.rollback()
            in_another_thread(lambda: store.set("a", 2))
        assert store.get("a") == 2

    @pytest.mark.parametrize("name", sorted(TRANSACTION_CALLS))
    def test_every_verb_is_refused_after_a_rollback(self, store: Storage, name: str) -> None:
        with store.transaction() as tx:
            tx.rollback()
            with pytest.raises(TransactionError):
                TRANSACTION_CALLS[name](tx)
        assert store.count() == 0

    @pytest.mark.parametrize("name", sorted(TRANSACTION_CALLS))
    def test_every_verb_is_refused_after_the_end(self, store: Storage, name: str) -> None:
        with store.transaction() as tx:
            pass
        with pytest.raises(TransactionError):
            TRANSACTION_CALLS[name](tx)
        assert (store.count(), store.list_namespaces()) == (0, ["default"])

    def test_even_nothing_is_refused_after_the_end(self, store: Storage) -> None:
        with store.transaction() as tx:
            pass
        verbs = (tx.get_many, tx.get_entries, tx.set_many, tx.add_many, tx.delete_many, tx.load)
        assert not [verb.__name__ for verb in verbs if not is_refused(TransactionError, verb, [])]

    def test_even_nothing_is_refused_by_the_store_inside(self, store: Storage) -> None:
        verbs = (store.get_many, store.get_entries, store.set_many, store.add_many, store.delete_many, store.load)
        with store.transaction():
            assert not [verb.__name__ for verb in verbs if not is_refused(TransactionError, verb, [])]

    def test_rollback_after_the_end_is_refused(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
        with pytest.raises(TransactionError):
            tx.rollback()
        assert store.get("a") == 1

    def test_an_error_of_a_verb_leaves_the_transaction_usable(self, store: Storage) -> None:
        store.set("a", 1)
        with store.transaction() as tx:
            tx.set("b", 1)
            with pytest.raises(KeyExistsError):
                tx.set("a", 2, overwrite=False)
            with pytest.raises(VersionConflictError):
                tx.set("a", 2, if_version=1)
            with pytest.raises(BatchError):
                tx.set_many({"c": 1, "d": math.nan})
            with pytest.raises(KeyNotFoundError):
                tx.take("missing")
            tx.set("e", 1)
        assert store.get_many(store.list_keys()) == {"a": 1, "b": 1, "e": 1}

    @pytest.mark.parametrize("name", sorted(TRANSACTION_CALLS))
    def test_a_transaction_has_every_verb(self, store: Storage, name: str) -> None:
        with store.transaction() as tx:
            tx.set("key", {"n": 1}, namespace="place")
            tx.set("key", 1)
            if name in {"merge", "set_metadata"}:
                tx.set("key", {})
            if name == "transaction" and not self.savepoints:
                with pytest.raises(TransactionError):
                    TRANSACTION_CALLS[name](tx)
            else:
                TRANSACTION_CALLS[name](tx)

    def test_a_transaction_reads_its_own_writes(self, store: Storage) -> None:
        store.set_many({"a": 1, "b": 2})
        with store.transaction() as tx:
            tx.set("c", 3, namespace="default")
            tx.delete("a")
            tx.modify("b", lambda value: value + 10)
            assert tx.get("c") == 3
            assert tx.list_keys() == ["b", "c"]
            assert [(entry.key, entry.value) for entry in tx.scan()] == [("b", 12), ("c", 3)]
            assert tx.count() == 2
            assert tx.get_many(["a", "b", "c"]) == {"b": 12, "c": 3}
            assert not tx.has("a")
            tx.set("x", 1, namespace="place")
            assert tx.list_namespaces() == ["default", "place"]
            assert tx.namespace_info("place").entries == 1

    def test_others_see_nothing_before_the_commit(self, store: Storage) -> None:
        store.set("a", 1)
        with store.transaction() as tx:
            tx.set("a", 2)
            tx.set("b", 2)
            tx.set("c", 2, namespace="place")
            seen = in_another_thread(lambda: (store.get("a"), store.list_keys(), store.list_namespaces()))
            scanned = in_another_thread(lambda: [entry.value for entry in store.scan()])
        assert seen == (1, ["a"], ["default"])
        assert scanned == [1]
        assert in_another_thread(lambda: store.get_many(["a", "b"])) == {"a": 2, "b": 2}

    def test_what_has_expired_stays_so_while_a_transaction_is_open(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({"gone": 1, "gone too": 2}, ttl=1)
        clock.advance(1)
        with store.transaction() as tx:
            tx.set("new", 1, ttl=5)
            tx.delete("gone")
            seen = in_another_thread(lambda: (store.count(), store.list_keys(), store.has("gone"), list(store.scan())))
            assert (tx.count(), tx.list_keys()) == (1, ["new"])
            tx.rollback()
        assert seen == (0, [], False, [])
        assert (store.count(), store.list_keys()) == (0, [])

    def test_others_see_nothing_of_what_was_rolled_back(self, store: Storage) -> None:
        store.set("a", 1)
        with store.transaction() as tx:
            tx.delete("a")
            assert in_another_thread(lambda: store.get("a")) == 1
            tx.rollback()
            assert in_another_thread(lambda: store.get("a")) == 1

    def test_now_is_read_once(self, store: Storage, clock: FakeClock) -> None:
        store.set("a", 1, ttl=10)
        start, micros = clock.time, clock.micros
        with store.transaction() as tx:
            clock.advance(10)
            assert tx.get("a") == 1
            assert tx.set("b", 1) == micros
            assert tx.get_entry("b").created_at == start
        assert store.get("a") is None

    def test_the_view_of_a_transaction_takes_part(self, store: Storage) -> None:
        outside = store.namespace("place")
        with pytest.raises(OwnError), store.transaction() as tx:
            for inside in (tx.namespace("place"), tx.namespace(outside)):
                inside["a"] = 1
                inside.update(b=2)
                assert (len(inside), list(inside), inside.pop("b")) == (2, ["a", "b"], 2)
            raise OwnError
        assert len(outside) == 0

    def test_a_transaction_may_be_handed_to_another_thread(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            assert in_another_thread(lambda: tx.increment("a")) == 2
            assert tx.get("a") == 2
        assert store.get("a") == 2

    def test_two_calls_at_once_are_refused(self, store: Storage) -> None:
        store.set("a", 1)

        def meddle(value: int) -> int:
            with pytest.raises(TransactionError):
                in_another_thread(lambda: tx.get("a"))
            return value + 1

        with store.transaction() as tx:
            assert tx.modify("a", meddle) == 2
            assert tx.get("a") == 2

    @pytest.mark.parametrize("name", sorted(STORE_CALLS))
    def test_the_store_is_refused_inside_ones_own_transaction(self, store: Storage, name: str) -> None:
        store.set("key", {"n": 1}, namespace="place")
        with store.transaction() as tx:
            tx.set("a", 1)
            with pytest.raises(TransactionError, match=r"\btx\b"):
                STORE_CALLS[name](store)
            with pytest.raises(TransactionError, match=r"\btx\b"):
                _ = store.namespace("place")["key"]
        assert store.get("a") == 1
        assert store.get("key", namespace="place") == {"n": 1}

    def test_the_store_is_free_again_after_the_transaction(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.rollback()
            store.set("a", 1)
        with store.transaction() as tx:
            tx.set("b", 1)
        store.set("c", 1)
        assert store.list_keys() == ["a", "b", "c"]

    def test_durable_belongs_to_the_outermost_block(self, store: Storage) -> None:
        with store.transaction(durable=True) as tx:
            for call in (
                lambda: tx.set("a", 1, durable=True),
                lambda: tx.set_many({"a": 1}, durable=True),
                lambda: tx.delete("a", durable=True),
                lambda: tx.increment("a", durable=True),
                lambda: tx.transaction(durable=True).__enter__(),
            ):
                with pytest.raises(TransactionError, match="durable"):
                    call()
            tx.set("b", 1)
        assert store.list_keys() == ["b"]

    def test_a_writer_waits_no_longer_than_told(self, store: Storage) -> None:
        def second() -> None:
            with store.transaction(wait=0.05) as other:
                other.set("a", 2)

        if not self.write_lock:
            with pytest.raises(TransactionConflictError), store.transaction() as tx:
                tx.set("a", 1)
                in_another_thread(second)
            assert store.get("a") == 2
            return
        with store.transaction() as tx:
            tx.set("a", 1)
            with pytest.raises(StorageBusyError):
                in_another_thread(second)
        assert store.get("a") == 1
        in_another_thread(second)
        assert store.get("a") == 2

    def test_a_block_is_entered_once(self, store: Storage) -> None:
        block = store.transaction()
        with block as tx:
            tx.set("a", 1)
        with pytest.raises((TransactionError, RuntimeError, AttributeError)):
            block.__enter__()
        assert store.get("a") == 1
        store.set("a", 2)


class ReadOnlyTransactionContract(ContractBase):
    """`transaction(read_only=True)`."""

    @pytest.fixture
    def impatient(self, tmp_path: Path, clock: FakeClock) -> Iterator[Storage]:
        with self.open_store(tmp_path, clock=clock, busy_timeout=0.2) as store:
            yield store

    @pytest.mark.parametrize("name", sorted(READS))
    def test_it_reads(self, store: Storage, name: str) -> None:
        store.set("key", 1)
        store.set("key", 1, namespace="place")
        with store.transaction(read_only=True) as tx:
            READS[name](tx)

    @pytest.mark.parametrize("name", sorted(WRITES))
    def test_it_refuses_to_write(self, store: Storage, name: str) -> None:
        store.set("key", {"n": 1})
        store.set("key", {"n": 1}, namespace="place")
        before = store.get_entry("key")
        with store.transaction(read_only=True) as tx:
            with pytest.raises(StorageReadOnlyError):
                WRITES[name](tx)
            assert tx.get("key") == {"n": 1}
        assert not difference(store.get_entry("key"), before)
        assert store.count(namespace="place") == 1

    def test_it_sees_one_moment(self, impatient: Storage, clock: FakeClock) -> None:
        impatient.set("a", 1)
        impatient.set("brief", 1, ttl=1)
        with impatient.transaction(read_only=True) as tx:
            assert tx.get("a") == 1
            written = self.write_beside(lambda: in_another_thread(lambda: impatient.set_many({"a": 2, "b": 2})))
            clock.advance(1)
            assert tx.get("brief") == 1
            assert tx.get("a") in ([1] if self.snapshots else [1, 2])
            assert tx.list_keys() == ["a", "brief"] or not self.snapshots
        assert impatient.get_many(["a", "b", "brief"]) == ({"a": 2, "b": 2} if written else {"a": 1})

    def test_the_store_may_be_used_beside_it(self, impatient: Storage) -> None:
        impatient.set("a", 1)
        with impatient.transaction(read_only=True) as tx:
            assert (tx.get("a"), impatient.get("a")) == (1, 1)
            written = self.write_beside(lambda: impatient.set("b", 1))
        assert impatient.list_keys() == (["a", "b"] if written else ["a"])

    def write_beside(self, write: Callable[[], object]) -> bool:
        """Write while somebody reads; without snapshots the reader may be in the way, and is told so."""
        if self.snapshots:
            write()
            return True
        return not is_refused(StorageBusyError, write)


class RunTransactionContract(ContractBase):
    """run_transaction."""

    def test_it_commits_and_gives_the_result(self, store: Storage) -> None:
        def work(tx: Transaction) -> str:
            tx.set("a", 1)
            return "done"

        assert store.run_transaction(work) == "done"
        assert store.run_transaction(work, durable=True) == "done"
        assert store.get("a") == 1

    def test_an_exception_rolls_back_and_is_not_tried_again(self, store: Storage) -> None:
        calls: list[int] = []
        errors = (
            OwnError("mine"),
            VersionConflictError("conflict", 1, 2),
            TransactionError("misused"),
            KeyNotFoundError("a"),
        )
        for error in errors:

            def work(tx: Transaction, error: Exception = error) -> None:
                calls.append(1)
                tx.set("a", 1)
                raise error

            with pytest.raises(type(error)) as caught:
                store.run_transaction(work)
            assert caught.value is error
        assert len(calls) == len(errors)
        assert store.count() == 0

    @pytest.mark.parametrize("error", [TransactionConflictError, StorageBusyError])
    def test_a_conflict_is_tried_again_from_the_start(
        self, store: Storage, error: type[TransactionConflictError | StorageBusyError]
    ) -> None:
        seen: list[Any] = []

        def work(tx: Transaction) -> int:
            seen.append(tx.get("a"))
            count = tx.increment("a")
            if len(seen) < 3:
                raise error("again")
            return count

        assert store.run_transaction(work) == 1
        assert seen == [None, None, None]
        assert store.get("a") == 1

    def test_it_gives_up_after_so_many_attempts(self, store: Storage) -> None:
        calls: list[int] = []

        def work(tx: Transaction) -> None:
            tx.set("a", 1)
            calls.append(1)
            raise TransactionConflictError("again")

        with pytest.raises(TransactionConflictError, match="again"):
            store.run_transaction(work, attempts=3)
        assert len(calls) == 3
        assert store.count() == 0

    def test_it_refuses_misused_arguments(self, store: Storage) -> None:
        wrong: Any
        for wrong in (0, -1, 1.5, "3", True, None):
            with pytest.raises(InvalidValueError, match="attempts"):
                store.run_transaction(repr, attempts=wrong)
        for wrong in (-1, math.nan, "3", True, [1]):
            with pytest.raises(InvalidValueError, match="deadline"):
                store.run_transaction(repr, deadline=wrong)
            with pytest.raises(InvalidValueError, match="wait"), store.transaction(wait=wrong):
                pass

    def test_it_gives_up_at_its_deadline(self, store: Storage) -> None:
        calls: list[int] = []

        def work(_: Transaction) -> None:
            calls.append(1)
            raise StorageBusyError("again")

        with pytest.raises(StorageBusyError, match="again"):
            store.run_transaction(work, attempts=1_000_000, deadline=0.05)
        assert 1 <= len(calls) < 1_000_000

    def test_it_may_roll_back_by_hand(self, store: Storage) -> None:
        def work(tx: Transaction) -> str:
            tx.set("a", 1)
            tx.rollback()
            return "rolled back"

        assert store.run_transaction(work) == "rolled back"
        assert store.count() == 0

    def test_many_threads_lose_no_update(self, store: Storage) -> None:
        def work(tx: Transaction) -> None:
            tx.set("n", tx.get("n", 0) + 1)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(store.run_transaction, work) for _ in range(40)]:
                done.result()
        assert store.get("n") == 40
