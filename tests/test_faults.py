"""System calls and syncs that fail, at every call of a workload, once and for good: nothing lost, half done or hung.

Each run fails one call. What was acknowledged is done on a store in memory too. Afterwards, with the fault gone, the
file is opened again: it is whole and holds what the store in memory holds, and of what was not acknowledged nothing; a
write whose outcome is unknown may be there or not, but whole, and for good.

The short form fails some of the calls. The long one fails each of them, and prints how many:

    pytest -s --hypothesis-profile=long tests/test_faults.py
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from faults import Failing, Fault, failing, no_hang
from faulty import WORKLOADS, Run, begin

from mycelia_storage import open_storage
from mycelia_storage.engines.sqlite import writer
from mycelia_storage.testing import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Few enough for each run to meet checkpoints.
FEW_PAGES = 6
LEAST_RUNS = 3_000
# How far apart the calls are that the short form fails: those of most workloads are alike.
STRIDE = 83

FAULTS = (
    Fault("pwrite64"),
    Fault("pwrite64", errno.ENOSPC),
    Fault("pwrite64", errno.EINTR),
    Fault("pread64"),
    Fault("ftruncate"),
    Fault("ftruncate", errno.ENOSPC),
    Fault("fstat"),
    Fault("stat"),
    Fault("open"),
    Fault("open", errno.EMFILE),
    Fault("open", errno.ENOSPC),
    Fault("mmap", errno.ENOMEM),
    Fault("unlink"),
    Fault("access"),
    Fault("sync"),
)
# What keeps a lock on a -shm from being given back keeps others out until the connection is closed, and SQLite tries
# for ten seconds each time.
WITHOUT_WAL = (Fault("fcntl"), Fault("fcntl", errno.ENOLCK))


class Setting(NamedTuple):
    name: str
    options: dict[str, Any]


SETTINGS = (
    Setting("WAL", {"wal_mode": True}),
    Setting("WAL, FULL", {"wal_mode": True, "synchronous": "FULL"}),
    Setting("journal", {"wal_mode": False, "synchronous": "FULL"}),
    Setting("journal, EXTRA", {"wal_mode": False, "synchronous": "EXTRA"}),
)


# ---- running


@pytest.fixture
def scratch() -> Iterator[str]:
    """In memory where there is such a directory: thousands of files are written here."""
    directory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=directory) as name:
        yield os.path.realpath(name)


@pytest.fixture(autouse=True)
def written_back_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(writer, "WAL_PAGES", FEW_PAGES)
    logger = logging.getLogger("mycelia_storage")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


def prepare(path: str, options: dict[str, Any], clock: FakeClock) -> None:
    with open_storage(path, clock=clock, **options) as store:
        begin(store)


def once(
    scratch: str, original: str, setting: Setting, workload: Callable[[Run], None], fault: Fault
) -> tuple[Failing, Counter[str]]:
    """One run. How many calls there were, and what was raised."""
    directory = os.path.join(scratch, "run")
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(original, directory)
    clock = FakeClock()
    with open_storage("memory:", clock=clock) as mirror:
        begin(mirror)
        run = Run(os.path.join(directory, "store.db"), setting.options, clock, mirror)
        where = f"{setting.name}, {workload.__name__}, {fault}"
        try:
            run.is_for_good = fault.for_good
            with failing(fault) as state, no_hang(30):
                workload(run)
            run.verdict()
        except BaseException as error:
            error.add_note(f"{where}; raised before: {dict(run.errors)}")
            raise
    return state, run.errors


@pytest.fixture(scope="module")
def totals(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    found = Counter[str]()
    yield found
    print(f"in all: {found['runs']} runs, {found['calls']} calls failed")
    if request.config.getoption("--hypothesis-profile") == "long" and found["tests"] == len(SETTINGS) * len(WORKLOADS):
        assert found["runs"] >= LEAST_RUNS


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_a_call_that_fails_loses_nothing(
    scratch: str,
    setting: Setting,
    workload: Callable[[Run], None],
    totals: Counter[str],
    request: pytest.FixtureRequest,
) -> None:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    original = os.path.join(scratch, "original")
    os.mkdir(original)
    prepare(os.path.join(original, "store.db"), setting.options, FakeClock())
    # Not the same ones for each.
    first = 1 + (SETTINGS.index(setting) * len(WORKLOADS) + WORKLOADS.index(workload)) * 7 % STRIDE
    runs, injected, errors = 0, 0, Counter[str]()
    for fault in FAULTS if setting.options["wal_mode"] else (*FAULTS, *WITHOUT_WAL):
        counted, _ = once(scratch, original, setting, workload, fault)
        for at in range(1 if is_long else min(first, counted.calls), counted.calls + 1, 1 if is_long else STRIDE):
            for for_good in (False, True):
                # Who is interrupted tries again, for ever; and who gets no lock, for as long as it may.
                if for_good and fault.error in {errno.EINTR, errno.ENOLCK}:
                    continue
                state, raised = once(scratch, original, setting, workload, fault._replace(at=at, for_good=for_good))
                runs, injected = runs + 1, injected + state.failed
                errors += raised
    print(f"{setting.name}, {workload.__name__}: {runs} runs, {injected} calls failed; {dict(errors)}")
    totals.update(runs=runs, calls=injected, tests=1)
