"""The demo on a small file of the same form: it does every step, and it notices what is not so."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[1] / "demo" / "cities.py"


def write_cities(path: Path) -> None:
    cities: dict[str, Any] = {}
    for number in range(2_930, 2_960):
        name = f"Città {number}"
        cities[str(number)] = {"geonameid": number, "name": name, "population": number * 1000, "latitude": -0.5}
    path.write_text(json.dumps(cities))


def test_the_demo_does_every_step_and_can_be_run_again(tmp_path: Path) -> None:
    write_cities(tmp_path / "cities.json")
    command = [
        sys.executable,
        str(DEMO),
        "--data-dir",
        str(tmp_path / "data"),
        "--source",
        str(tmp_path / "cities.json"),
    ]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.stderr.decode() == ""
        assert done.returncode == 0
        text = done.stdout.decode()
        for part in ("30 documents", "prefix '293': 10 keys", "failed halfway", "30 cities are equal"):
            assert part in text


def test_the_demo_raises_when_something_is_not_so(tmp_path: Path) -> None:
    names = runpy.run_path(str(DEMO))
    write_cities(tmp_path / "cities.json")
    path = tmp_path / "cities.db"
    assert names["import_cities"](tmp_path / "cities.json", path) == 30
    with pytest.raises(AssertionError, match="2930 is as it was"):
        names["reopen"](path, tmp_path / "cities.json", {"2930": "changed"})
