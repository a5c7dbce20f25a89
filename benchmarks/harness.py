"""Runs the workload: rounds in which the subjects take turns, slice by slice, and what came out of them.

Called by `__main__`. Every round begins on empty files. Within a round each operation is cut into slices, and every
subject does a slice before any does the next, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from benchmarks.peers import PEERS
from benchmarks.subjects import Memory, Raw, Sqlite, Subject
from benchmarks.verify import verify
from benchmarks.workload import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.workload import Operation, Workload

T = TypeVar("T")

SUBJECTS: Final[tuple[type[Subject], ...]] = (Raw, Sqlite, Memory, *PEERS)
MEASURE: Final = Raw.name


@dataclass(frozen=True)
class Results:
    """Seconds for one of `Operation.per`: by operation, by subject, one a round. What was left out is not there."""

    seconds: dict[str, dict[str, list[float]]]

    def microseconds(self, operation: str, subject: str) -> float | None:
        """The median over the rounds."""
        rounds = self.seconds.get(operation, {}).get(subject)
        return statistics.median(rounds) * 1e6 if rounds else None

    def ratio(self, operation: str, subject: str, against: str = MEASURE) -> float | None:
        """How many times as fast as `against` the subject is: the median of the rounds' ratios."""
        ours = self.seconds.get(operation, {}).get(subject)
        theirs = self.seconds.get(operation, {}).get(against)
        if not ours or not theirs:
            return None
        return statistics.median(their / our for their, our in zip(theirs, ours, strict=True))


def make_subjects(names: Iterable[str], tell: Callable[[str], None]) -> list[Subject]:
    """The subjects of these names, without those that are not installed, which are told of."""
    wanted = set(names)
    subjects: list[Subject] = []
    for kind in SUBJECTS:
        if kind.name in wanted:
            try:
                subjects.append(kind())
            except ImportError as error:
                tell(f"{kind.name}: left out ({error})")
    return subjects


def run(
    subjects: Sequence[Subject],
    workload: Workload,
    *,
    rounds: int,
    chosen: Sequence[str],
    directory: Path,
    tell: Callable[[str], None],
) -> Results:
    """Measure the chosen operations in so many rounds, on files in `directory`."""
    results = Results({operation.name: {} for operation in OPERATIONS if operation.name in chosen})
    # What is here already stays, so that collecting before each operation is cheap however much is imported.
    gc.freeze()
    try:
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            with ExitStack() as stack:
                turns = rotated(subjects, number)
                for subject in turns:
                    place = directory / subject.name
                    place.mkdir()
                    stack.callback(shutil.rmtree, place)
                    subject.open(place)
                    stack.callback(subject.close)
                _run_round(turns, workload, results)
    finally:
        gc.unfreeze()
    return results


def timed(function: Callable[..., object], *arguments: Any) -> float:
    """How many seconds a call takes, the garbage collector kept out of it."""
    gc.disable()
    try:
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start
    finally:
        gc.enable()


def _run_round(subjects: Sequence[Subject], workload: Workload, results: Results) -> None:
    for operation in OPERATIONS:
        if operation.name in results.seconds:
            for name, seconds in _measure(operation, subjects, workload).items():
                results.seconds[operation.name].setdefault(name, []).append(seconds)
        if operation.name == "set":
            _complete(subjects, workload, was_timed="set" in results.seconds)
        if operation.name in results.seconds:
            for subject in _able(operation, subjects):
                verify(operation.name, subject, workload)


def _measure(operation: Operation, subjects: Sequence[Subject], workload: Workload) -> dict[str, float]:
    """Seconds for one of `operation.per`, by subject, after all slices were done in turn."""
    able = _able(operation, subjects)
    seconds = dict.fromkeys((subject.name for subject in able), 0.0)
    weights = dict.fromkeys(seconds, 0)
    gc.collect()
    for number, part in enumerate(operation.parts(workload)):
        for subject in rotated(able, number):
            sample = _sample(part, subject)
            seconds[subject.name] += timed(operation.run, subject, sample)
            weights[subject.name] += operation.weigh(workload, sample)
    return {name: seconds[name] / weights[name] for name in seconds}


def _able(operation: Operation, subjects: Sequence[Subject]) -> list[Subject]:
    return [subject for subject in subjects if (operation.needs or operation.name) not in subject.lacks]


def _sample(part: Sequence[Any], subject: Subject) -> Sequence[Any]:
    """The part of a slice that this subject does: a slow one does the beginning alone."""
    return part[: max(1, round(len(part) * subject.share))]


def _complete(subjects: Sequence[Subject], workload: Workload, *, was_timed: bool) -> None:
    """Store, untimed, those documents that the timed slices left out: every subject reads among as many."""
    set_operation = OPERATIONS[0]
    for subject in subjects:
        for part in set_operation.parts(workload):
            done = len(_sample(part, subject)) if was_timed else 0
            if done < len(part):
                subject.fill(part[done:])


def rotated(values: Sequence[T], by: int) -> list[T]:
    """The same order, begun elsewhere: everybody is first in turn, and raw and this library stay neighbours."""
    start = by % max(1, len(values))
    return [*values[start:], *values[:start]]
