"""The contract of queries: what filters match, what sorts give, pages, and the verbs that take a filter.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import (
    Entry,
    InvalidFilterError,
    InvalidNamespaceError,
    InvalidValueError,
    Page,
    StorageQuery,
    TransactionError,
    field,
    match,
    path,
)
from mycelia_storage.filters import And, Or
from mycelia_storage.testing.base import ContractBase, needs
from mycelia_storage.testing.compare import difference
from mycelia_storage.testing.filter_cases import CASES, DOCUMENTS, in_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mycelia_storage import Filter, Storage
    from mycelia_storage.testing.clock import FakeClock

N = field("n")
# No comparison narrows these, or an empty group opens them for everything.
EMPTY: tuple[Any, ...] = (
    [],
    (),
    {"and": []},
    {"or": []},
    {"not": {"or": []}},
    match(),
    StorageQuery(),
    [[], [{"and": [[]]}]],
    {"or": [N == 0, []]},
    {"or": [N == 0, {"not": {"or": []}}]},
    {"not": [N == 0, {"or": []}]},
)


def _numbered(store: Storage, count: int, **options: Any) -> list[str]:
    keys = [f"key{number:03}" for number in range(count)]
    store.set_many({key: {"n": number} for number, key in enumerate(keys)}, **options)
    return keys


def _by_cursors(store: Any, filter: Any = None, *, limit: int, **options: Any) -> Iterator[list[str]]:
    cursor: str | None = None
    for _ in range(10_000):
        page = store.query(filter, limit=limit, cursor=cursor, **options)
        yield page.keys()
        cursor = page.cursor
        if cursor is None:
            return
    raise AssertionError("the pages have no end")


class QueryContract(ContractBase):
    """What a filter matches, and in which order entries come; with an index and without."""

    @pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
    def test_each_filter_finds_what_it_says(self, store: Storage, indexed: bool) -> None:
        store.set_many(DOCUMENTS)
        store.set_many({"other": {"v": 1}}, namespace="other")
        if indexed:
            store.create_index("v")
            store.create_index(field("v").desc(), "w")
            store.create_index("$value", namespace=None)
        for case in CASES:
            found = store.query(case.filter).keys()
            assert found == sorted(case.keys), repr(case.filter)
            assert store.count(case.filter) == len(case.keys), repr(case.filter)

    @pytest.mark.parametrize("indexed", [None, "v", "-v"], ids=repr)
    def test_each_value_has_its_place_in_the_order(self, store: Storage, indexed: str | None) -> None:
        store.set_many(DOCUMENTS)
        if indexed:
            store.create_index(indexed)
        for sort, expected in (("v", in_order()), ("-v", in_order(descending=True))):
            assert store.query(sort=sort).keys() == expected
            assert store.query(sort=sort, limit=5).keys() == expected[:5]
            for size in (1, 2, 3, 7):
                assert list(chain.from_iterable(_by_cursors(store, sort=sort, limit=size))) == expected

    def test_without_a_filter_or_a_sort_everything_comes_in_key_order(self, store: Storage) -> None:
        keys = ["\U0001f600", "b", "a", "\ue000", "B"]
        store.set_many(dict.fromkeys(keys, 1))
        nothings: tuple[Any, ...] = (None, [], {"and": []}, StorageQuery())
        for nothing in nothings:
            assert store.query(nothing).keys() == sorted(keys)

    def test_several_fields_and_mixed_directions(self, store: Storage) -> None:
        store.set_many(
            {"a": {"x": 1, "y": 1}, "b": {"x": 1, "y": 2}, "c": {"x": 2}, "d": {"y": 1}, "e": {"x": 1, "y": 1}}
        )
        assert store.query(sort=["x", "y"]).keys() == ["a", "e", "b", "c", "d"]
        assert store.query(sort=["x", "-y"]).keys() == ["b", "e", "a", "c", "d"]
        assert store.query(sort=["-x", "y"]).keys() == ["c", "a", "e", "b", "d"]
        assert store.query(sort=["-x", "-y"]).keys() == ["c", "b", "e", "a", "d"]
        assert store.query(sort=["-y", "x"]).keys() == ["b", "a", "e", "d", "c"]

    def test_ties_fall_to_the_key_in_the_direction_of_the_last_field(self, store: Storage) -> None:
        store.set_many({key: {"x": 1, "y": [1]} for key in "cab"})
        assert store.query(sort="x").keys() == ["a", "b", "c"]
        assert store.query(sort="-x").keys() == ["c", "b", "a"]
        assert store.query(sort=["-x", "y"]).keys() == ["a", "b", "c"]
        assert store.query(sort=["x", "-missing"]).keys() == ["c", "b", "a"]

    def test_sorting_by_what_is_not_in_the_document(self, store: Storage, clock: FakeClock) -> None:
        for key, metadata, ttl in (("b", {"m": 1}, 60), ("a", {"m": 2}, None), ("c", None, 30)):
            store.set(key, 1, metadata=metadata, ttl=ttl)
            clock.advance(1)
        store.touch("b", ttl=60)
        assert store.query(sort="-$key").keys() == ["c", "b", "a"]
        assert store.query(sort="$created_at").keys() == ["b", "a", "c"]
        assert store.query(sort="-$updated_at").keys() == ["b", "c", "a"]
        assert store.query(sort="$version").keys() == ["a", "c", "b"]
        assert store.query(sort="-$metadata.m").keys() == ["a", "b", "c"]
        assert store.query(sort="$expires_at").keys() == ["c", "b", "a"]
        assert store.query(sort="-$expires_at").keys() == ["b", "c", "a"]

    def test_filters_on_times_and_metadata(self, store: Storage, clock: FakeClock) -> None:
        start = clock.time
        store.set("a", 1, metadata={"by": {"me": [1]}})
        clock.advance(1)
        store.set("b", 1, metadata={"by": {"you": [2]}}, ttl=10)
        assert store.query(field("$metadata.by.me[0]") == 1).keys() == ["a"]
        assert store.query(field("$metadata.by") == {"you": [2.0]}).keys() == ["b"]
        assert store.query(~field("$metadata.by.me").exists()).keys() == ["b"]
        assert store.query(field("$created_at") == start).keys() == ["a"]
        assert store.query(field("$created_at") > start).keys() == ["b"]
        assert store.query(field("$updated_at").between(start, start + timedelta(milliseconds=999))).keys() == ["a"]
        assert store.query(field("$expires_at").exists()).keys() == ["b"]
        assert store.query(field("$expires_at") <= start + timedelta(seconds=11)).keys() == ["b"]
        assert store.query(field("$expires_at") != 0).keys() == ["a", "b"]
        assert store.query(field("$version") == store.get_entry("b").version).keys() == ["b"]

    @pytest.mark.parametrize("name", ["$created_at", "$updated_at", "$expires_at", "$version"])
    def test_a_text_beside_a_time_is_refused_by_every_verb(self, store: Storage, name: str) -> None:
        store.set("a", 1, ttl=60)
        verbs = (store.query, store.pages, store.count, store.scan, store.delete_where, store.explain)
        for operator, operand in (("gt", "2024-01-01"), ("ne", "2024-01-01"), ("nin", ["2024"]), ("eq", None)):
            written = {"field": name, "operator": operator, "value": operand}
            for verb in verbs:
                with pytest.raises(InvalidFilterError, match=rf"^filter\.value: \{name} {operator}: "):
                    verb(written)
        with pytest.raises(InvalidFilterError, match=r"\$key eq: a string is needed, not int"):
            store.count(field("$key") == 1)
        assert store.count() == 1

    def test_names_are_names_whatever_they_look_like(self, store: Storage) -> None:
        names = ["a.b", 'q"x', "x'y", "", "$key", "[0]", "a\\b", "é", "\U0001f600", "\x01", "%", "?1", "{}", "\u2028"]
        for number, name in enumerate(names):
            store.set(f"{number:02}", {name: number, "below": {name: [number]}})
        for number, name in enumerate(names):
            assert store.query(path(name) == number).keys() == [f"{number:02}"]
            assert store.query(match(**{name: number})).keys() == [f"{number:02}"]
            assert store.query(path("below", name, 0) == number).keys() == [f"{number:02}"]
            assert store.query({"field": [name], "operator": "exists"}).keys() == [f"{number:02}"]
            assert store.query(sort=path(name), limit=1).keys() == [f"{number:02}"]
        assert store.query(field("a.b").exists()).keys() == []

    def test_what_has_expired_is_not_found(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({"a": {"n": 1}, "b": {"n": 2}}, ttl=1)
        store.set("c", {"n": 3})
        clock.advance(1)
        assert store.query(N > 0).keys() == ["c"]
        assert store.query(sort="-n", limit=2).keys() == ["c"]
        assert store.query(N > 0, limit=1).cursor is None
        assert store.count(N > 0) == 1
        assert store.delete_where(N > 0) == 1

    def test_other_namespaces_stay_out(self, store: Storage) -> None:
        for namespace in ("a", "ab", "default", "x' OR '1'='1"):
            store.set("k" + namespace[0], {"n": 1}, namespace=namespace)
        assert store.query(N == 1, namespace="ab").keys() == ["ka"]
        assert store.query(N == 1, namespace="x' OR '1'='1").keys() == ["kx"]
        assert store.query(N == 1).keys() == ["kd"]
        assert store.query(N == 1, namespace="nowhere").keys() == []
        with pytest.raises(InvalidNamespaceError):
            store.query(namespace="a*")

    def test_entries_come_whole(self, store: Storage) -> None:
        store.set("a", {"n": 1, "deep": [1.0, None]}, metadata={"m": 1}, ttl=10)
        page = store.query(N == 1)
        assert isinstance(page, Page)
        assert isinstance(page[0], Entry)
        assert not difference(list(page), [store.get_entry("a")])
        page[0].value["n"] = 2
        assert store.query(N == 1).values() == [{"n": 1, "deep": [1.0, None]}]

    @needs("savepoints", TransactionError)
    def test_inside_a_transaction_its_writes_are_found(self, store: Storage) -> None:
        store.set_many({"a": {"n": 1}, "b": {"n": 2}})
        with store.transaction() as tx:
            tx.set("c", {"n": 3})
            tx.set("a", {"n": 5})
            tx.delete("b")
            assert tx.query(N > 0, sort="-n").keys() == ["a", "c"]
            assert tx.count(N > 3) == 1
            assert [page.keys() for page in tx.pages(sort="n", page_size=1)] == [["c"], ["a"]]
            assert [entry.key for entry in tx.scan(N > 3)] == ["a"]
            with tx.transaction() as inner:
                assert inner.delete_where(N > 3) == 1
                assert inner.query().keys() == ["c"]
                inner.rollback()
            assert tx.query().keys() == ["a", "c"]
            tx.rollback()
        assert store.query(sort="-n").keys() == ["b", "a"]


class PagingContract(ContractBase):
    """Pages, cursors, limits and offsets."""

    def test_a_page_is_a_sequence_of_entries(self, store: Storage) -> None:
        keys = _numbered(store, 5)
        page = store.query(N >= 1, limit=3)
        assert page.keys() == keys[1:4]
        assert page.values() == [{"n": 1}, {"n": 2}, {"n": 3}]
        assert [entry.key for entry in page] == page.keys()
        assert (len(page), page[0].key, page[-1].key) == (3, keys[1], keys[3])
        assert [entry.key for entry in page[1:]] == keys[2:4]
        assert page == store.query(N >= 1, limit=3)
        assert page != store.query(N >= 1, limit=2)
        assert "3" in repr(page)
        assert not store.query(N > 100)
        with pytest.raises(TypeError):
            page[0] = page[1]  # type: ignore[index]

    @pytest.mark.parametrize("indexed", [False, True], ids=["without", "indexed"])
    def test_limit_and_offset_cut_a_piece_out_of_what_is_found(self, store: Storage, indexed: bool) -> None:
        keys = _numbered(store, 6)
        if indexed:
            store.create_index("n")
        assert store.query(limit=2).keys() == keys[:2]
        assert store.query(N > 0, limit=2, offset=1).keys() == keys[2:4]
        assert store.query(offset=4).keys() == keys[4:]
        assert store.query(N.ne(0), offset=4).keys() == keys[5:]
        assert store.query(sort="-n", limit=2, offset=1).keys() == [keys[4], keys[3]]
        assert store.query(limit=0).keys() == []
        assert store.query(limit=0).cursor is None
        assert store.query(limit=100, offset=100).keys() == []
        assert store.query(limit=2**63 - 1, offset=2**63 - 1).keys() == []
        assert store.query(limit=2**63 - 1).keys() == keys

    @pytest.mark.parametrize("bad", [-1, 1.0, 1.5, math.nan, "1", True, [1], 2**63], ids=repr)
    def test_a_bad_limit_or_offset_of_a_query_is_refused(self, store: Storage, bad: Any) -> None:
        with pytest.raises(InvalidValueError, match="limit"):
            store.query(limit=bad)
        with pytest.raises(InvalidValueError, match="offset"):
            store.query(offset=bad)
        with pytest.raises(InvalidValueError, match="page_size"):
            store.pages(page_size=bad)
        with pytest.raises(InvalidValueError, match="limit"):
            store.explain(limit=bad)

    def test_there_is_a_cursor_while_there_is_more(self, store: Storage) -> None:
        _numbered(store, 4)
        assert store.query().cursor is None
        assert store.query(limit=4).cursor is None
        assert store.query(limit=5).cursor is None
        assert store.query(limit=3).cursor is not None
        assert store.query(limit=3, offset=1).cursor is None
        cursor = store.query(limit=2).cursor
        assert store.query(limit=2, cursor=cursor).cursor is None
        assert store.query(cursor=cursor).cursor is None

    @pytest.mark.parametrize("size", [1, 2, 3, 9, 10, 11])
    @pytest.mark.parametrize("sort", [None, "n", "-n", "same", ["-same", "n"]], ids=repr)
    def test_page_by_page_everything_comes_once(self, store: Storage, size: int, sort: Any) -> None:
        store.set_many({f"key{number}": {"n": number % 4, "same": 1} for number in range(10)})
        whole = store.query(N != 2, sort=sort).keys()
        assert len(whole) == 8
        pages = list(_by_cursors(store, N != 2, sort=sort, limit=size))
        assert list(chain.from_iterable(pages)) == whole
        assert [page.keys() for page in store.pages(N != 2, sort=sort, page_size=size)] == pages

    def test_a_cursor_goes_on_with_another_limit(self, store: Storage) -> None:
        keys = _numbered(store, 6)
        page = store.query(sort="-n", limit=2)
        assert store.query(sort="-n", limit=3, cursor=page.cursor).keys() == [keys[3], keys[2], keys[1]]
        assert store.query(sort="-n", cursor=page.cursor).keys() == keys[3::-1]

    def test_no_pages_of_nothing(self, store: Storage) -> None:
        assert list(store.pages()) == []
        assert list(store.pages(N == 1, namespace="nowhere")) == []

    def test_what_stays_comes_once_whatever_is_written_meanwhile(self, store: Storage) -> None:
        store.set_many({f"key{number:02}": {"n": number % 3} for number in range(30)})
        staying = {f"key{number:02}" for number in range(30) if number % 5}
        for sort in (None, "n", "-n", ["-n", "missing"]):
            seen: list[str] = []
            for turn, page in enumerate(store.pages(N < 3, sort=sort, page_size=4)):
                seen += page.keys()
                last = page[-1].key
                store.set(f"a{turn}", {"n": 0})
                store.set(f"z{turn}", {"n": 2})
                store.set(last + "+", {"n": 1})
                for gone in range(0, 30, 5):
                    store.delete(f"key{gone:02}")
            assert staying <= set(seen)
            assert len(seen) == len(set(seen))
            store.delete_where(~field("$key").startswith("key") | field("$key").endswith("+"))

    def test_the_entry_that_a_cursor_stands_on_may_go(self, store: Storage) -> None:
        keys = _numbered(store, 5)
        for sort, rest in (("n", keys[2:]), ("-n", [keys[2], keys[1], keys[0]])):
            page = store.query(sort=sort, limit=2)
            with store.transaction() as tx:
                tx.delete(page[-1].key)
                assert tx.query(sort=sort, cursor=page.cursor).keys() == rest
                tx.rollback()

    def test_a_cursor_of_another_query_is_refused(self, store: Storage) -> None:
        _numbered(store, 5)
        _numbered(store, 5, namespace="other")
        cursor = store.query(N >= 0, sort="n", limit=2).cursor
        assert store.query(N >= 0, sort="n", limit=1, cursor=cursor)
        others: tuple[dict[str, Any], ...] = (
            {"filter": N >= 1, "sort": "n"},
            {"filter": N > 0, "sort": "n"},
            {"filter": None, "sort": "n"},
            {"filter": N >= 0, "sort": "-n"},
            {"filter": N >= 0, "sort": None},
            {"filter": N >= 0, "sort": ["n", "m"]},
            {"filter": N >= 0, "sort": "n", "namespace": "other"},
        )
        for other in others:
            with pytest.raises(InvalidFilterError, match=r"^cursor: "):
                store.query(cursor=cursor, **other)

    def test_a_damaged_cursor_is_refused(self, store: Storage) -> None:
        _numbered(store, 5)
        cursor = store.query(sort="n", limit=2).cursor
        assert cursor is not None
        for damaged in ("", "x", cursor[:-4], cursor[4:], cursor[::-1], cursor + "AAAA", " " + cursor, "é", "\ud800"):
            with pytest.raises(InvalidFilterError, match=r"^cursor: "):
                store.query(sort="n", cursor=damaged)
        bad: Any
        for bad in (b"abc", 1, True, [cursor], object()):
            with pytest.raises(InvalidFilterError, match=r"^cursor: .*str"):
                store.query(sort="n", cursor=bad)

    def test_a_cursor_and_an_offset_do_not_go_together(self, store: Storage) -> None:
        _numbered(store, 5)
        cursor = store.query(limit=2).cursor
        with pytest.raises(InvalidFilterError, match="offset"):
            store.query(limit=2, cursor=cursor, offset=1)
        assert store.query(limit=2, cursor=cursor, offset=0)


class FilteringContract(ContractBase):
    """The other verbs that take a filter: count, scan, delete_where, explain; and `StorageQuery` in all of them."""

    def test_count_with_a_filter(self, store: Storage) -> None:
        _numbered(store, 10)
        assert store.count(N >= 3) == 7
        assert store.count([]) == store.count() == store.count(StorageQuery()) == 10
        assert store.count({"or": []}) == 0
        assert store.count({"field": "n", "operator": "in", "value": [1, 2, 99]}) == 2

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 500])
    def test_scan_with_a_filter(self, store: Storage, batch_size: int) -> None:
        keys = _numbered(store, 30)
        store.set("other", {"n": 1})
        odd = N.is_in(range(1, 30, 2))
        assert [entry.key for entry in store.scan(odd, batch_size=batch_size)] == [*keys[1::2], "other"]
        with store.scan(odd, prefix="key01", batch_size=batch_size) as scan:
            assert [entry.key for entry in scan] == keys[11:20:2]
        assert list(store.scan(N == 99, batch_size=batch_size)) == []
        assert not difference(list(store.scan(N == 3)), [store.get_entry(keys[3])])

    @pytest.mark.parametrize("batch_size", [3, 500])
    def test_a_prefix_counts_against_no_limit_of_a_filter(self, store: Storage, batch_size: int) -> None:
        keys = _numbered(store, 20)
        deep: Filter = N >= 0
        for _ in range(98):
            deep = ~deep
        largest: list[Filter] = [
            Or([N.eq(number) for number in range(1000)]),
            N.is_in(range(30_000)),
            ~deep,
            And([And(())] * 9_998 + [N >= 0]),
        ]
        for one in largest:
            with store.scan(one, batch_size=batch_size) as scan:
                expected = [entry.key for entry in scan]
            with store.scan(one, prefix="key01", batch_size=batch_size) as scan:
                assert [entry.key for entry in scan] == [key for key in expected if key.startswith("key01")]
            assert store.query(one).keys() == expected
            assert expected == ([] if one is largest[2] else keys)

    def test_scan_with_a_filter_sees_one_moment(self, store: Storage) -> None:
        keys = _numbered(store, 10)
        with store.scan(N >= 2, batch_size=2) as scan:
            first = next(scan)
            store.set(keys[9], {"n": 0})
            store.set(keys[1], {"n": 5})
            store.delete(keys[5])
            store.set("key0099", {"n": 5})
            seen = [first.key, *(entry.key for entry in scan)]
        if self.snapshots:
            assert seen == keys[2:]
        else:
            assert seen == sorted(set(seen))
            assert set(keys[2:5] + keys[6:9]) <= set(seen)

    def test_delete_where_removes_what_matches(self, store: Storage) -> None:
        keys = _numbered(store, 10)
        _numbered(store, 10, namespace="other")
        assert store.delete_where(N < 4) == 4
        assert store.list_keys() == keys[4:]
        assert store.delete_where(N < 4) == 0
        assert store.delete_where({"field": "n", "operator": "gt", "value": 7}) == 2
        assert store.delete_where(StorageQuery(N == 5), durable=True) == 1
        assert store.list_keys() == [keys[4], keys[6], keys[7]]
        assert store.delete_where(field("$key").exists()) == 3
        assert store.count(namespace="other") == 10

    def test_delete_where_needs_a_filter(self, store: Storage) -> None:
        _numbered(store, 2)
        nothing: Any = None
        with pytest.raises(InvalidFilterError, match=r"clear\(\)"):
            store.delete_where(nothing)
        with pytest.raises(TypeError):
            store.delete_where()  # type: ignore[call-arg]
        assert store.count() == 2

    def test_delete_where_takes_no_empty_list_for_all(self, store: Storage) -> None:
        _numbered(store, 2)
        for empty in EMPTY:
            assert store.count(empty) in (0, 2)  # the others have a use for it
            with pytest.raises(InvalidFilterError, match=r"^filter: delete_where needs one .*clear\(\)"):
                store.delete_where(empty)
            with pytest.raises(InvalidFilterError, match=r"clear\(\)"), store.transaction() as tx:
                tx.delete_where(empty)
            assert store.count() == 2, empty

    def test_delete_where_takes_an_empty_group_that_settles_nothing(self, store: Storage) -> None:
        _numbered(store, 3)
        assert store.delete_where([N == 0, [], {"and": []}]) == 1
        assert store.delete_where({"or": [N == 1, {"or": []}]}) == 1
        assert store.delete_where([N == 2, {"or": []}]) == 0
        assert store.delete_where({"not": {"or": [N == 9, []]}}) == 0
        assert store.delete_where(N.not_in([])) == 1

    def test_versions_are_not_used_again_after_delete_where(self, store: Storage) -> None:
        store.set("a", {"n": 1})
        before = store.set("a", {"n": 1})
        assert store.delete_where(N == 1) == 1
        assert store.set("a", 1) > before

    def test_a_query_says_all_of_it(self, store: Storage) -> None:
        keys = _numbered(store, 10)
        query = StorageQuery(N >= 2, sort="-n", limit=3, offset=1)
        assert store.query(query).keys() == [keys[8], keys[7], keys[6]]
        assert store.query(StorageQuery.from_dict(query.to_dict())).keys() == [keys[8], keys[7], keys[6]]
        assert store.query(StorageQuery(N >= 2), sort="-n", limit=1).keys() == [keys[9]]
        assert store.query(StorageQuery(N >= 2, sort="-n"), limit=1, offset=1).keys() == [keys[8]]
        assert [page.keys() for page in store.pages(StorageQuery(N >= 8, sort="-n"), page_size=1)] == [
            [keys[9]],
            [keys[8]],
        ]
        assert store.count(StorageQuery(N >= 2)) == 8
        assert [entry.key for entry in store.scan(StorageQuery(N >= 8))] == keys[8:]
        cursor = store.query(StorageQuery(N >= 2, sort="n", limit=2)).cursor
        assert store.query(StorageQuery(N >= 2, sort="n", limit=1), cursor=cursor).keys() == [keys[4]]

    def test_what_a_query_says_is_not_said_again_beside_it(self, store: Storage) -> None:
        query = StorageQuery(N >= 2, sort="-n", limit=3, offset=1)
        besides: dict[str, Any] = {"sort": "n", "limit": 3, "offset": 1}
        for name, beside in besides.items():
            with pytest.raises(InvalidFilterError, match=f"^{name}: given twice"):
                store.query(query, **{name: beside})
        with pytest.raises(InvalidFilterError, match=r"^limit: given twice"):
            store.explain(query, limit=3)
        with pytest.raises(InvalidFilterError, match=r"^page_size: "):
            store.pages(StorageQuery(N >= 2, limit=3), page_size=2)

    def test_verbs_without_order_take_no_query_with_one(self, store: Storage) -> None:
        _numbered(store, 3)
        for query in (StorageQuery(sort="n"), StorageQuery(limit=1), StorageQuery(offset=1)):
            for verb in (store.count, store.scan, store.delete_where):
                with pytest.raises(InvalidFilterError, match=f"^filter: {verb.__name__} takes no"):
                    verb(query)
        assert store.count() == 3

    @pytest.mark.parametrize("bad", [True, "n = 1", 5, {}, {"n": 1}, N, [None, True], ...], ids=repr)
    def test_what_is_no_filter_is_refused_by_every_verb(self, store: Storage, bad: Any) -> None:
        _numbered(store, 2)
        for verb in (store.query, store.pages, store.count, store.scan, store.delete_where, store.explain):
            with pytest.raises(InvalidFilterError, match=r"^filter"):
                verb(bad)
        assert store.count() == 2

    def test_a_view_finds_in_its_namespace(self, store: Storage) -> None:
        keys = _numbered(store, 4, namespace="place")
        _numbered(store, 9)
        view = store.namespace("place", dict[str, int])
        assert view.query(N > 1, sort="-n").values() == [{"n": 3}, {"n": 2}]
        assert view.query(limit=1).cursor is not None
        assert [page.keys() for page in view.pages(N > 0, page_size=2)] == [keys[1:3], keys[3:]]
        assert view.count(N > 1) == 2
        assert [entry.key for entry in view.scan(N > 1)] == keys[2:]
        assert view.explain(N > 1).entries == 4
        assert view.delete_where(N > 1) == 2
        assert (len(view), store.count()) == (2, 9)

    def test_explain_tells_how_many_entries_there_are(self, store: Storage, clock: FakeClock) -> None:
        _numbered(store, 3)
        store.set("brief", {"n": 1}, ttl=1)
        clock.advance(1)
        plan = store.explain(N == 1, sort="-n", limit=2)
        assert plan.entries == 3
        assert plan.uses_index == bool(plan.indexes)
        assert plan.full_scan
        assert store.explain(namespace="nowhere").entries == 0
        made: list[Filter] = [N == 1, ~(N == 1), (N == 1) | (N > 3), N.is_in([]), N.contains("x")]
        for one in made:
            assert store.explain(one).entries == 3
