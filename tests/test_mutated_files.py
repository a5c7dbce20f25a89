"""Hazard: a file that was damaged, or made to do harm, crashes the process, hangs it, or raises what nobody expects.

Files of stores are changed at random, from a seed, in every place that SQLite and this library read, and then every
verb is run on each. The long form looks at 12,500 files, and prints what came of them:

    pytest --hypothesis-profile=long -n 0 -s tests/test_mutated_files.py

A file that went wrong is made again by `python tests/mutating.py TEMPLATES SEED 1`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import mutating

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SHORT, LONG = 160, 12_500
FILES_A_PROCESS = {False: 80, True: 500}
PATIENCE_SECONDS = 1000


def judge(templates: Path, first: int, count: int, *more: str) -> tuple[Counter[str], list[str]]:
    """What came of the files of some seeds, and what went wrong."""
    program = [sys.executable, "-Wignore", mutating.__file__, str(templates), str(first), str(count), *more]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    last: list[object] = []
    for line in done.stdout.splitlines():
        last = json.loads(line)
        if len(last) == 3:
            _, template, outcome = last
            outcomes[f"{template}: {str(outcome).partition(' ')[0]}"] += 1
            outcomes[str(outcome)] += 1
            if str(outcome).startswith("FAILED"):
                wrong.append(f"seed {last[0]}, {template}: {outcome}")
    if done.returncode:
        wrong.append(f"seed {last[0] if last else first}: the process ended with {done.returncode}: {done.stderr}")
    return outcomes, wrong


def judge_all(
    templates: Path, count: int, *, is_long: bool, only_rot: bool = False, checksums: bool = True
) -> tuple[Counter[str], list[str]]:
    more = (["rot with checksums" if checksums else "rot"]) if only_rot else []
    size = FILES_A_PROCESS[is_long]
    total: Counter[str] = Counter()
    wrong: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for outcomes, problems in pool.map(lambda first: judge(templates, first, size, *more), range(0, count, size)):
            total += outcomes
            wrong += problems
    return total, wrong


def test_no_mutated_file_crashes_hangs_or_raises_what_is_not_ours(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    count = LONG if is_long else SHORT
    mutating.make_templates(tmp_path)
    outcomes, wrong = judge_all(tmp_path, count, is_long=is_long)
    if is_long:
        for outcome, number in sorted(outcomes.items()):
            print(f"{number:6} {outcome}")
    assert not wrong, "\n\n".join(wrong[:10])
    files = sum(number for outcome, number in outcomes.items() if outcome.split()[0] in ("refused:", "opened,"))
    assert files == count
    assert len(outcomes) > 12, "the files are hostile in many ways, or this test looks at nothing"


def test_of_a_file_with_checksums_nothing_wrong_is_given(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Flipped bits and overwritten runs: each document is as it was written, or there is an error in its place."""
    is_long = request.config.getoption("--hypothesis-profile") == "long"
    count = LONG // 2 if is_long else SHORT // 2
    mutating.make_templates(tmp_path, checksums=True)
    outcomes, wrong = judge_all(tmp_path, count, is_long=is_long, only_rot=True)
    if is_long:
        for outcome, number in sorted(outcomes.items()):
            print(f"{number:6} {outcome}")
    assert not wrong, "\n\n".join(wrong[:10])
    assert outcomes["opened, errors"] > count // 4


def test_this_test_sees_what_is_wrong(tmp_path: Path) -> None:
    """The same files without checksums: some of what is given is not what was written."""
    mutating.make_templates(tmp_path)
    for name in ("old", "small"):
        (tmp_path / f"{name}.db").unlink()
    _, wrong = judge_all(tmp_path, SHORT, is_long=False, only_rot=True, checksums=False)
    assert any("wrong data" in problem for problem in wrong)
