"""Looks whether a subject did what it was just timed for, untimed: an answer that is wrong has no speed.

Called by the harness after each operation of a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from benchmarks.workload import GET_MANY_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.subjects import Subject
    from benchmarks.workload import Item, Workload


class WrongAnswerError(Exception):
    """A subject does not give back what was stored."""


def verify(operation: str, subject: Subject, workload: Workload) -> None:
    """Raise WrongAnswerError unless a few answers are what this operation should have led to."""
    got, expected = _CASES[operation](subject, workload)
    if got != expected:
        raise WrongAnswerError(f"{subject.name}, {operation}: {got!r:.200} and not {expected!r:.200}")


def _stored(subject: Subject, *items: Item) -> tuple[object, object]:
    return [subject.get_each([key]) for key, _ in items], [value for _, value in items]


def _get(subject: Subject, workload: Workload) -> tuple[object, object]:
    key = workload.reads[0]
    document = subject.get_each([key])
    return document and document["id"], int(key[-8:])


def _has(subject: Subject, workload: Workload) -> tuple[object, object]:
    return [subject.has_each([key]) for key in (workload.reads[0], "absent")], [True, False]


def _get_many(subject: Subject, workload: Workload) -> tuple[object, object]:
    keys = workload.reads[:GET_MANY_SIZE]
    found = subject.get_many([*keys, "absent"])
    return {key: value["id"] for key, value in found.items()}, {key: int(key[-8:]) for key in keys}


def _list_keys(subject: Subject, workload: Workload) -> tuple[object, object]:
    prefix = next(iter(workload.keys_under))
    return subject.list_keys(prefix), sorted(key for key in workload.reads if key.startswith(prefix))


def _delete(subject: Subject, workload: Workload) -> tuple[object, object]:
    key = workload.deletes[0]
    if "has" in subject.lacks:
        return subject.get_each([key]), None
    return subject.has_each([key]), False


# In a sample the first document of the first slice is always among those that were done.
_CASES: Final[dict[str, Callable[[Subject, Workload], tuple[object, object]]]] = {
    "set": lambda subject, workload: _stored(subject, workload.new[0], workload.new[-1]),
    "overwrite": lambda subject, workload: _stored(subject, workload.changed[0]),
    "get": _get,
    "has": _has,
    "get_many": _get_many,
    "list_keys": _list_keys,
    "count": lambda subject, workload: (subject.count(), workload.documents),
    "set_many": lambda subject, workload: _stored(subject, *(batch[-1] for batch in workload.batches)),
    "delete": _delete,
}
