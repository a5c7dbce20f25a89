"""The one workload: the documents, the orders they are visited in, and the operations that are timed on them.

Called by the harness. Everything here is the same for every subject and on every run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.subjects import Subject

Document: TypeAlias = dict[str, Any]
Item: TypeAlias = tuple[str, Document]

NAMESPACE: Final = "default"
KINDS: Final = (
    "account", "article", "basket", "comment", "contact", "device", "event", "invoice",
    "lesson", "order", "payment", "product", "project", "session", "ticket", "user",
)  # fmt: skip
GET_MANY_SIZE: Final = 1_000
SET_MANY_SIZE: Final = 10_000
SET_MANY_BATCHES: Final = 2
SLICES: Final = 5
COUNTS_A_SLICE: Final = 5
# Long enough that two of the same length are never taken for each other, short enough for 150 bytes a document.
CITIES: Final = ("Bergen", "Cusco", "Dakar", "Essen", "Funchal", "Gdansk", "Hobart", "Izmir")
_NAMES: Final = ("Ada", "Bruno", "Chloe", "Dmitri", "Emeka", "Farida", "Goran", "Hana", "Ines", "Jun")


def make_name(chance: random.Random) -> str:
    """One of a hundred."""
    return f"{chance.choice(_NAMES)} {chance.choice(_NAMES)}son"


def make_document(number: int, chance: random.Random) -> Document:
    """About 150 bytes of JSON with every type that a document has."""
    return {
        "id": number,
        "name": make_name(chance),
        "city": chance.choice(CITIES),
        "age": chance.randrange(18, 90),
        "score": chance.randrange(10**6) / 1000,
        "active": chance.random() < 0.5,
        "referrer": None,
        "tags": [f"tag{chance.randrange(10)}", f"tag{chance.randrange(10)}"],
        "place": {"lat": chance.randrange(900) / 10, "lon": chance.randrange(1800) / 10},
    }


@dataclass(frozen=True)
class Workload:
    """What is stored and in which orders it is visited; every order is a shuffle of its own."""

    new: list[Item]
    changed: list[Item]
    reads: list[str]
    deletes: list[str]
    batches: list[list[Item]]
    keys_under: dict[str, int] = field(repr=False)

    @property
    def documents(self) -> int:
        """How many documents are stored when all are."""
        return len(self.new)


def make_workload(documents: int, seed: int = 20) -> Workload:
    """The workload of so many documents: the same one for the same number."""
    chance = random.Random(seed)
    kinds = [chance.choice(KINDS) for _ in range(documents)]
    keys = [f"{kind}:{number:08d}" for number, kind in enumerate(kinds)]
    chance.shuffle(keys)
    size = min(SET_MANY_SIZE, documents)

    def shuffled() -> list[str]:
        return chance.sample(keys, len(keys))

    def batch(first: int) -> list[Item]:
        numbers = chance.sample(range(first, first + size), size)
        return [(f"{chance.choice(KINDS)}:{number:08d}", make_document(number, chance)) for number in numbers]

    return Workload(
        new=[(key, make_document(int(key[-8:]), chance)) for key in keys],
        changed=[(key, make_document(int(key[-8:]), chance)) for key in shuffled()],
        reads=shuffled(),
        deletes=shuffled(),
        batches=[batch(documents + number * size) for number in range(SET_MANY_BATCHES)],
        keys_under={f"{kind}:": kinds.count(kind) for kind in KINDS if kind in kinds},
    )


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    `parts` are the slices in which it is timed, between which the subjects take turns; `run` does one slice on one
    subject; `weigh` says how many of `per` a slice holds, which is what the time is divided by.
    """

    name: str
    per: str
    parts: Callable[[Workload], Sequence[Sequence[Any]]]
    run: Callable[[Subject, Any], None]
    weigh: Callable[[Workload, Any], int] = lambda _, part: len(part)
    title: str = ""
    # Lines of one subject operation share its name: a subject that lacks "set" lacks both lines of it.
    needs: str = ""


def sliced(values: Sequence[Any]) -> list[Sequence[Any]]:
    """The values in at most SLICES runs of about the same length, none of them empty."""
    size = max(1, -(-len(values) // SLICES))
    return [values[start : start + size] for start in range(0, len(values), size)]


def _get_many_parts(workload: Workload) -> list[Sequence[Any]]:
    reads = workload.reads
    return sliced([reads[start : start + GET_MANY_SIZE] for start in range(0, len(reads), GET_MANY_SIZE)])


def _run_get_many(subject: Subject, chunks: Sequence[list[str]]) -> None:
    for chunk in chunks:
        subject.get_many(chunk)


def _run_list_keys(subject: Subject, prefixes: Sequence[str]) -> None:
    for prefix in prefixes:
        subject.list_keys(prefix)


def _run_count(subject: Subject, calls: Sequence[int]) -> None:
    for _ in calls:
        subject.count()


def _run_set_many(subject: Subject, batches: Sequence[list[Item]]) -> None:
    for batch in batches:
        subject.set_many(batch)


def _set_each(subject: Subject, items: Sequence[Item]) -> None:
    subject.set_each(items)


def _get_each(subject: Subject, keys: Sequence[str]) -> None:
    subject.get_each(keys)


def _has_each(subject: Subject, keys: Sequence[str]) -> None:
    subject.has_each(keys)


def _delete_each(subject: Subject, keys: Sequence[str]) -> None:
    subject.delete_each(keys)


def _lengths(_: Workload, part: Sequence[Sequence[Any]]) -> int:
    return sum(map(len, part))


OPERATIONS: Final = (
    Operation("set", "document", lambda w: sliced(w.new), _set_each, title="set, new key"),
    Operation("overwrite", "document", lambda w: sliced(w.changed), _set_each, title="set, overwrite", needs="set"),
    Operation("get", "document", lambda w: sliced(w.reads), _get_each),
    Operation("has", "key", lambda w: sliced(w.reads), _has_each),
    Operation("get_many", "document", _get_many_parts, _run_get_many, _lengths, title="get_many(1,000)"),
    Operation(
        "list_keys",
        "key",
        lambda w: [list(w.keys_under)] * SLICES,
        _run_list_keys,
        lambda workload, part: sum(workload.keys_under[prefix] for prefix in part),
        title="list_keys(prefix)",
    ),
    Operation("count", "call", lambda _: [range(COUNTS_A_SLICE)] * SLICES, _run_count),
    Operation(
        "set_many",
        "document",
        lambda w: [[batch] for batch in w.batches],
        _run_set_many,
        _lengths,
        title="set_many(10,000)",
    ),
    Operation("delete", "document", lambda w: sliced(w.deletes), _delete_each),
)
