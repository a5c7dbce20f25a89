"""docs/guarantees.md promises something for each fault, and names the tests that prove it: they have to be there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from test_docs import rows_of

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
PROMISES = ("what happens", "what is promised", "what a caller sees", "shown by")
MUTANTS = ("test", "changes of the library that it was seen to catch")

# What has to have a row, each by words that stand in its first cell.
FAULTS = (
    "process is killed",
    'power cut, `synchronous="OFF"`',
    'power cut, `synchronous="NORMAL"`',
    'power cut, `synchronous="FULL"`',
    "power cut, `durable=True`",
    "disk is full",
    "error on a read",
    "error on a write",
    "error on a sync",
    "damaged page",
    "flipped bit, without checksums",
    "flipped bit, with checksums",
    "moved, replaced or deleted",
    "fork",
    "two versions of the library",
    "clock goes backwards",
    "another SQLite library",
    "JavaScript adapter",
    "interpreter ends",
)

NAMED = re.compile(r"`(test_\w+)(?:\.py)?::(\w+)`")


def named_in(text: str) -> list[tuple[str, str]]:
    return NAMED.findall(text)


def functions_of(name: str) -> set[str]:
    """The tests of a file, or of a part of the contract suite."""
    places = [ROOT / "tests" / f"{name}.py", *(ROOT / "tests").glob(f"*/{name}.py")]
    found = [place for place in places if place.exists()]
    assert found, f"there is no tests/{name}.py"
    nodes = ast.walk(ast.parse(found[0].read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_its_promise(fault: str) -> None:
    rows = [row for row in rows_of(PAGE, *PROMISES) if fault in row[0]]
    assert len(rows) == 1
    assert all(rows[0])


@pytest.mark.parametrize("row", rows_of(PAGE, *PROMISES), ids=lambda row: row[0])
def test_every_promise_is_shown_by_tests_that_are_there(row: list[str]) -> None:
    named = named_in(row[3])
    assert named
    for file, test in named:
        assert test in functions_of(file), f"{file}.py has no {test}"


@pytest.mark.parametrize("row", rows_of(PAGE, *MUTANTS), ids=lambda row: row[0])
def test_mutants_are_told_of_tests_that_are_there(row: list[str]) -> None:
    [(file, test)] = named_in(row[0])
    assert test in functions_of(file), f"{file}.py has no {test}"
    assert row[1]
