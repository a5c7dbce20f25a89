"""The contract of transactions inside transactions: what each keeps, and what is undone with what.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import StorageReadOnlyError, TransactionError
from mycelia_storage.testing.base import ContractBase, needs
from mycelia_storage.testing.compare import difference
from mycelia_storage.testing.transactions import OwnError

if TYPE_CHECKING:
    from mycelia_storage import Storage, Transaction
    from mycelia_storage.testing.clock import FakeClock


class NestedTransactionContract(ContractBase):
    """Transactions inside transactions."""

    @needs("savepoints", TransactionError)
    def test_an_inner_block_commits_into_the_outer(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            with tx.transaction() as inner:
                assert inner.get("a") == 1
                inner.set("b", 2)
            assert tx.get("b") == 2
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}

    @needs("savepoints", TransactionError)
    def test_an_inner_rollback_leaves_the_outer_as_it_was(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            before = tx.get_entry("a")
            with pytest.raises(OwnError), tx.transaction() as inner:
                inner.set("a", 2)
                inner.set("b", 2, namespace="place")
                raise OwnError
            assert not difference(tx.get_entry("a"), before)
            assert tx.list_namespaces() == ["default"]
            tx.set("c", 3)
        assert store.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}
        assert store.list_namespaces() == ["default"]

    @needs("savepoints", TransactionError)
    def test_an_inner_rollback_by_hand(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            with tx.transaction() as inner:
                inner.set("a", 2)
                inner.rollback()
                with pytest.raises(TransactionError):
                    inner.get("a")
            assert tx.get("a") == 1
        assert store.get("a") == 1

    @needs("savepoints", TransactionError)
    def test_an_outer_rollback_takes_the_inner_along(self, store: Storage) -> None:
        with store.transaction() as tx:
            with tx.transaction() as inner:
                inner.set("a", 1)
            tx.rollback()
        assert store.count() == 0

    @needs("savepoints", TransactionError)
    def test_an_inner_transaction_ends_with_its_block(self, store: Storage) -> None:
        with store.transaction() as tx:
            with tx.transaction() as inner:
                inner.set("a", 1)
            with pytest.raises(TransactionError):
                inner.set("a", 2)
            tx.set("b", 1)
        assert store.get_many(["a", "b"]) == {"a": 1, "b": 1}

    @needs("savepoints", TransactionError)
    def test_two_beside_each_other_are_refused_and_lose_nothing(self, store: Storage) -> None:
        with store.transaction() as tx:
            with tx.transaction() as inner:
                inner.set("a", 1)
                with pytest.raises(TransactionError, match="another transaction within"):
                    tx.transaction().__enter__()
                with tx.transaction(read_only=True) as beside, inner.transaction() as innermost:
                    innermost.set("b", beside.get("a"))
                    with pytest.raises(TransactionError, match="another transaction within"):
                        inner.transaction().__enter__()
            with pytest.raises(OwnError), tx.transaction() as second:
                second.set("a", 2)
                raise OwnError
            with tx.transaction() as third:
                third.set("c", 3)
        assert store.get_many(["a", "b", "c"]) == {"a": 1, "b": 1, "c": 3}

    @needs("savepoints", TransactionError)
    def test_nobody_writes_beside_one_that_may_be_undone(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            with pytest.raises(OwnError), tx.transaction() as inner:
                inner.set("b", 2)
                for write in (
                    lambda: tx.set("log", "kept"),
                    lambda: tx.increment("a"),
                    lambda: tx.set_many({"log": 1}),
                    lambda: tx.namespace("place").set("log", 1),
                    lambda: tx.delete("a"),
                ):
                    with pytest.raises(TransactionError, match="another transaction within"):
                        write()
                assert tx.get_many(["a", "b"]) == {"a": 1, "b": 2}
                raise OwnError
            tx.set("log", "kept")
        assert store.get_many(["a", "b", "log"]) == {"a": 1, "log": "kept"}

    @needs("savepoints", TransactionError)
    def test_one_that_was_forgotten_is_in_nobodys_way(self, store: Storage) -> None:
        with store.transaction() as tx:
            forgotten = tx.transaction().__enter__()
            forgotten.set("a", 1)
            del forgotten
            gc.collect()
            with pytest.raises(OwnError), tx.transaction() as inner:
                inner.set("b", 2)
                raise OwnError
            with tx.transaction() as inner:
                inner.set("c", 3)
        assert store.get_many(["a", "b", "c"]) == {"a": 1, "c": 3}

    @needs("savepoints", TransactionError)
    def test_blocks_nest_deeply(self, store: Storage) -> None:
        def nest(tx: Transaction, depth: int) -> None:
            tx.set(f"key{depth}", depth)
            if depth == 10:
                raise OwnError
            try:
                with tx.transaction() as inner:
                    nest(inner, depth + 1)
            except OwnError:
                if depth > 5:
                    raise

        with store.transaction() as tx:
            nest(tx, 0)
        assert store.list_keys() == [f"key{depth}" for depth in range(6)]

    @needs("savepoints", TransactionError)
    def test_siblings_do_not_share_a_fate(self, store: Storage) -> None:
        with store.transaction() as tx:
            for n in range(6):
                with tx.transaction() as inner:
                    inner.set(f"key{n}", n)
                    if n % 2:
                        inner.rollback()
        assert store.list_keys() == ["key0", "key2", "key4"]

    @needs("savepoints", TransactionError)
    def test_versions_of_what_was_rolled_back_leave_nothing(self, store: Storage, clock: FakeClock) -> None:
        with store.transaction() as tx:
            with tx.transaction() as inner:
                inner.set("a", 1)
                inner.delete("a")
                inner.rollback()
            assert tx.set("a", 1) == clock.micros

    def test_a_read_only_block_stays_read_only_inside(self, store: Storage) -> None:
        with store.transaction(read_only=True) as tx, tx.transaction() as inner:
            assert inner.get("a") is None
            with pytest.raises(StorageReadOnlyError):
                inner.set("a", 1)
        assert store.count() == 0

    def test_a_transaction_goes_on_where_none_can_be_inside(self, store: Storage) -> None:
        with store.transaction() as tx:
            tx.set("a", 1)
            if self.savepoints:
                with tx.transaction() as inner:
                    inner.set("b", 1)
            else:
                with pytest.raises(TransactionError):
                    tx.transaction().__enter__()
                tx.set("b", 1)
            tx.set("c", 1)
        assert store.list_keys() == ["a", "b", "c"]
