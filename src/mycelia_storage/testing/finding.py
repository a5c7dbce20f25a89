"""The contract of the verbs that find entries: list_keys, scan, count, and of `escape_pattern`.

Run by subclasses of `StorageContract`.
"""

from __future__ import annotations

import contextlib
import math
import re
from typing import TYPE_CHECKING, Any

import pytest

from mycelia_storage import InvalidValueError, StorageBusyError, StorageClosedError, escape_pattern
from mycelia_storage.testing.base import ContractBase, in_another_thread
from mycelia_storage.testing.compare import difference

if TYPE_CHECKING:
    from pathlib import Path

    from mycelia_storage import Storage
    from mycelia_storage.testing.clock import FakeClock

# Sorted by code point: no case folding, no locale, and the non-BMP last (UTF-16 would put it before U+FFFD).
ORDERED_KEYS = (
    "\x01",
    "\t",
    " ",
    "!",
    "*",
    "0",
    "10",
    "9",
    "A",
    "B",
    "Z",
    "[",
    "\\",
    "_",
    "a",
    "a\x01",
    "a ",
    "aa",
    "b",
    "z",
    "~",
    "\x7f",
    "\u00e4",
    "\u00fc",
    "\u0301",
    "\u20ac",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\U00010000",
    "\U0001f600",
    "\U0010ffff",
)
PATTERNS: tuple[tuple[str, list[str]], ...] = (
    ("*", ["%", "*", "a", "a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab", "b"]),
    ("**", ["%", "*", "a", "a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab", "b"]),
    ("", []),
    ("a", ["a"]),
    ("A", []),
    ("a*", ["a", "a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab"]),
    ("*b", ["a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab", "b"]),
    ("a*b", ["a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab"]),
    ("*a*", ["a", "a*b", "a.b", "a/b", "a\\b", "a_b", "ab", "aXXb", "abab"]),
    ("ab*ab", ["abab"]),
    ("aba*bab", []),
    ("a*b*b", ["abab"]),
    ("a\\*b", ["a*b"]),
    ("\\*", ["*"]),
    ("\\**", ["*"]),
    ("a\\\\b", ["a\\b"]),
    ("a\\b", ["a\\b"]),
    ("a\\\\*", ["a\\b"]),
    ("a.b", ["a.b"]),
    ("a_b", ["a_b"]),
    ("%", ["%"]),
    ("a?b", []),
    ("[a]*", []),
    ("*?b", []),
    ("*[ab]", []),
    ("*\\**", ["*", "a*b"]),
    ("*\\*b", ["a*b"]),
)


class ListKeysContract(ContractBase):
    """list_keys and the public `escape_pattern`."""

    def test_list_keys_of_nothing(self, store: Storage) -> None:
        assert store.list_keys() == []
        assert store.list_keys(namespace="nowhere", pattern="*", prefix="a", limit=3, offset=2, reverse=True) == []

    def test_keys_come_in_the_order_of_code_points(self, store: Storage) -> None:
        store.set_many(dict.fromkeys(reversed(ORDERED_KEYS), 1))
        expected = sorted(ORDERED_KEYS)
        assert store.list_keys() == expected
        assert store.list_keys(reverse=True) == expected[::-1]
        assert [entry.key for entry in store.scan()] == expected

    @pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
    def test_a_pattern_matches_whole_keys(self, store: Storage, pattern: str, expected: list[str]) -> None:
        store.set_many(dict.fromkeys(PATTERNS[0][1], 1))
        assert store.list_keys(pattern=pattern) == sorted(expected)
        assert store.list_keys(pattern=pattern, reverse=True) == sorted(expected, reverse=True)

    def test_a_star_matches_line_breaks_and_non_bmp(self, store: Storage) -> None:
        store.set_many({"a\nb": 1, "a\U0001f600b": 2, "a\U0010ffffb": 3})
        assert store.list_keys(pattern="a*b") == ["a\nb", "a\U0001f600b", "a\U0010ffffb"]

    @pytest.mark.parametrize("text", ["a", "a*", "*", "\\", "\\*", "\\\\**", "%_", "a\\b*c"])
    def test_an_escaped_text_matches_itself_only(self, store: Storage, text: str) -> None:
        store.set_many({text: 1, text + "x": 2, "x" + text: 3})
        assert store.list_keys(pattern=escape_pattern(text)) == [text]
        assert store.list_keys(pattern=escape_pattern(text) + "*") == [text, text + "x"]

    def test_a_prefix_is_literal(self, store: Storage) -> None:
        store.set_many(dict.fromkeys(["%a", "*", "*a", "A", "a", "a%", "a*b", "a_b", "ab", "b"], 1))
        assert store.list_keys(prefix="a") == ["a", "a%", "a*b", "a_b", "ab"]
        assert store.list_keys(prefix="*") == ["*", "*a"]
        assert store.list_keys(prefix="%") == ["%a"]
        assert store.list_keys(prefix="a*b") == ["a*b"]
        assert len(store.list_keys(prefix="")) == 10
        assert store.list_keys(prefix="c") == []

    @pytest.mark.parametrize("last", ["\x7f", "\ud7ff", "\ue000", "\uffff", "\U0010ffff", "\U0010ffff\U0010ffff"])
    def test_a_prefix_that_ends_at_the_edge_of_a_range(self, store: Storage, last: str) -> None:
        keys = sorted(["a" + last, "a" + last + "x", "a" + last + "\U0010ffff", "a", "b", "a\x01"])
        store.set_many(dict.fromkeys(keys, 1))
        assert store.list_keys(prefix="a" + last) == [key for key in keys if key.startswith("a" + last)]
        assert store.list_keys(pattern="a" + last + "*") == [key for key in keys if key.startswith("a" + last)]
        assert store.list_keys(prefix=last) == []

    def test_a_prefix_and_a_pattern_hold_both(self, store: Storage) -> None:
        store.set_many(dict.fromkeys(["aa1", "ab1", "ab2", "b1"], 1))
        assert store.list_keys(prefix="ab", pattern="*1") == ["ab1"]
        assert store.list_keys(prefix="a", pattern="ab*") == ["ab1", "ab2"]
        assert store.list_keys(prefix="b", pattern="a*") == []
        assert store.list_keys(prefix="ab", pattern="ab1") == ["ab1"]

    def test_start_after_goes_on_behind_a_key(self, store: Storage) -> None:
        store.set_many(dict.fromkeys("abcd", 1))
        assert store.list_keys(start_after="b") == ["c", "d"]
        assert store.list_keys(start_after="bb") == ["c", "d"]
        assert store.list_keys(start_after="d") == []
        assert store.list_keys(start_after="c", reverse=True) == ["b", "a"]
        assert store.list_keys(start_after="bb", reverse=True) == ["b", "a"]
        assert store.list_keys(start_after="a", prefix="c") == ["c"]
        assert store.list_keys(start_after="c", prefix="b") == []

    def test_limit_and_offset_cut_a_piece_out(self, store: Storage) -> None:
        store.set_many(dict.fromkeys("abcde", 1))
        assert store.list_keys(limit=2) == ["a", "b"]
        assert store.list_keys(limit=2, offset=1) == ["b", "c"]
        assert store.list_keys(offset=3) == ["d", "e"]
        assert store.list_keys(limit=0) == []
        assert store.list_keys(limit=100, offset=4) == ["e"]
        assert store.list_keys(offset=100) == []
        assert store.list_keys(limit=2, offset=1, reverse=True) == ["d", "c"]
        assert store.list_keys(limit=1, offset=1, start_after="b") == ["d"]

    def test_limit_counts_what_matches(self, store: Storage) -> None:
        store.set_many({f"{letter}{n}": 1 for letter in "ab" for n in range(5)})
        assert store.list_keys(pattern="*3", limit=2) == ["a3", "b3"]
        assert store.list_keys(pattern="*3", limit=1, offset=1) == ["b3"]
        assert store.list_keys(pattern="*3", limit=1, reverse=True) == ["b3"]

    def test_limit_and_offset_do_not_count_expired_entries(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({"a": 1, "c": 1}, ttl=1)
        store.set_many({"b": 1, "d": 1})
        clock.advance(1)
        assert store.list_keys(limit=1, offset=1) == ["d"]

    @pytest.mark.parametrize("bad", [-1, 1.0, 1.5, math.nan, "1", True, [1]], ids=repr)
    def test_a_bad_limit_or_offset_is_refused(self, store: Storage, bad: Any) -> None:
        with pytest.raises(InvalidValueError, match="limit"):
            store.list_keys(limit=bad)
        with pytest.raises(InvalidValueError, match="offset"):
            store.list_keys(offset=bad)

    def test_a_limit_beyond_64_bits_is_no_crash(self, store: Storage) -> None:
        store.set("a", 1)
        with contextlib.suppress(InvalidValueError):
            assert store.list_keys(limit=2**64) == ["a"]
        with contextlib.suppress(InvalidValueError):
            assert store.list_keys(offset=2**64) == []

    @pytest.mark.parametrize("bad", [1, b"a", ["a"], re.compile("a"), True], ids=repr)
    def test_texts_have_to_be_texts(self, store: Storage, bad: Any) -> None:
        with pytest.raises(InvalidValueError, match="pattern"):
            store.list_keys(pattern=bad)
        with pytest.raises(InvalidValueError, match="prefix"):
            store.list_keys(prefix=bad)
        with pytest.raises(InvalidValueError, match="prefix"):
            store.scan(prefix=bad)
        with pytest.raises(InvalidValueError, match="start_after"):
            store.list_keys(start_after=bad)

    def test_the_keys_of_other_namespaces_stay_out(self, store: Storage) -> None:
        for namespace in ("a", "ab", "b", "default"):
            store.set("k" + namespace, 1, namespace=namespace)
        assert store.list_keys(namespace="a") == ["ka"]
        assert store.list_keys(namespace="ab", pattern="*", reverse=True) == ["kab"]

    def test_count_counts_a_namespace(self, store: Storage) -> None:
        assert store.count() == 0
        store.set_many(dict.fromkeys("abc", 1))
        store.set("d", 1, namespace="other")
        assert store.count() == 3
        assert store.count(namespace="other") == 1
        assert store.count(namespace="nowhere") == 0


class ScanContract(ContractBase):
    """scan."""

    def test_scan_gives_whole_entries_in_key_order(self, store: Storage) -> None:
        store.set("b", [2], metadata={"n": 2}, ttl=5)
        store.set("a", [1])
        expected = [store.get_entry("a"), store.get_entry("b")]
        assert not difference(list(store.scan()), expected)

    def test_scan_of_a_prefix(self, store: Storage) -> None:
        store.set_many(dict.fromkeys(["a", "a*", "ab", "b"], 1))
        assert [entry.key for entry in store.scan(prefix="a")] == ["a", "a*", "ab"]
        assert [entry.key for entry in store.scan(prefix="a*")] == ["a*"]
        assert list(store.scan(prefix="c")) == []

    def test_scan_of_nothing(self, store: Storage) -> None:
        assert list(store.scan()) == []
        assert list(store.scan(namespace="nowhere")) == []

    @pytest.mark.parametrize("batch_size", [1, 2, 3, 99, 100, 101, 500])
    def test_the_size_of_a_batch_changes_no_answer(self, store: Storage, batch_size: int) -> None:
        store.set_many({f"key{n:03}": n for n in range(100)})
        assert [entry.value for entry in store.scan(batch_size=batch_size)] == list(range(100))

    @pytest.mark.parametrize("bad", [0, -1, 1.5, math.nan, "1", None, True], ids=repr)
    def test_a_bad_batch_size_is_refused(self, store: Storage, bad: Any) -> None:
        with pytest.raises(InvalidValueError, match="batch_size"):
            store.scan(batch_size=bad)

    def test_scan_sees_one_moment(self, store: Storage) -> None:
        store.set_many({f"key{n}": n for n in range(10)})
        with store.scan(batch_size=2) as scan:
            first = next(scan)
            store.set("key1", "changed")
            store.set("key99", "new")
            store.delete("key5")
            seen = [first, *scan]
        keys = [entry.key for entry in seen]
        if self.snapshots:
            assert [entry.value for entry in seen] == list(range(10))
        else:
            untouched = {f"key{n}" for n in range(10)} - {"key5"}
            assert untouched <= set(keys)
            assert keys == sorted(set(keys))
        assert store.count() == 10

    def test_scan_sees_one_moment_from_its_start_on(self, store: Storage) -> None:
        store.set("a", 1)
        with store.scan() as scan:
            store.set("b", 2)
            keys = [entry.key for entry in scan]
        assert keys == ["a"] if self.snapshots else keys in (["a"], ["a", "b"])

    def test_nothing_expires_inside_a_scan(self, store: Storage, clock: FakeClock) -> None:
        store.set_many({f"key{n}": n for n in range(10)}, ttl=1)
        with store.scan(batch_size=2) as scan:
            first = next(scan)
            clock.advance(1)
            assert len([first, *scan]) == 10
        assert store.count() == 0

    def test_every_entry_can_be_changed_while_a_scan_runs(self, store: Storage) -> None:
        store.set_many({f"key{n:03}": n for n in range(100)})
        for entry in store.scan(batch_size=7):
            store.set(entry.key, entry.value + 1000)
        assert [entry.value for entry in store.scan()] == list(range(1000, 1100))
        for entry in store.scan(batch_size=7):
            store.delete(entry.key)
        assert store.count() == 0

    def test_a_closed_scan_is_at_its_end(self, store: Storage) -> None:
        store.set_many(dict.fromkeys("abc", 1))
        scan = store.scan(batch_size=1)
        assert next(scan).key == "a"
        scan.close()
        scan.close()
        assert list(scan) == []

    def test_leaving_its_block_closes_a_scan(self, store: Storage) -> None:
        store.set_many(dict.fromkeys("abc", 1))
        with store.scan(batch_size=1) as scan:
            assert next(scan).key == "a"
        assert list(scan) == []

    def test_an_exhausted_scan_stays_exhausted(self, store: Storage) -> None:
        store.set("a", 1)
        scan = store.scan()
        assert [entry.key for entry in scan] == ["a"]
        store.set("b", 1)
        assert list(scan) == []

    def test_a_scan_is_its_own_iterator(self, store: Storage) -> None:
        with store.scan() as scan:
            assert iter(scan) is scan

    def test_sixteen_scans_may_be_open_at_once(self, store: Storage) -> None:
        store.set_many({f"key{n}": n for n in range(10)})
        scans = [store.scan(batch_size=1) for _ in range(16)]
        assert {next(scan).key for scan in scans} == {"key0"}
        with pytest.raises(StorageBusyError, match=r"16 scans are open.*pages\(\)"):
            store.scan()
        store.set("key", 1)
        scans[0].close()
        assert len(list(store.scan())) == 11
        for scan in scans:
            scan.close()

    def test_forgotten_scans_are_collected(self, store: Storage) -> None:
        store.set_many({f"key{n}": n for n in range(10)})
        for _ in range(50):
            assert next(store.scan(batch_size=1)).key == "key0"
        assert store.count() == 10

    def test_a_scan_may_end_in_another_thread(self, store: Storage) -> None:
        store.set_many({f"key{n}": n for n in range(10)})
        with store.scan(batch_size=2) as scan:
            first = next(scan)
            rest = in_another_thread(lambda: list(scan))
        assert [first.value, *(entry.value for entry in rest)] == list(range(10))

    def test_a_scan_of_a_closed_store_raises_or_is_at_its_end(self, tmp_path: Path) -> None:
        store = self.open_store(tmp_path)
        store.set_many({f"key{n}": n for n in range(10)})
        scan = store.scan(batch_size=1)
        next(scan)
        store.close()
        with contextlib.suppress(StorageClosedError):
            assert len(list(scan)) <= 9
        scan.close()
