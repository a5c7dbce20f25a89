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


QUESTIONS = (
    "Città 2959 5.9, Città 2957 5.9",
    "plan: every one of 30 entries is visited",
    "advice: create_index('countrycode', '-population', namespace='cities')",
    "plan: index 'cities: countrycode, -population'",
    "JP-01, JP-01, JP-01",
    "30 places in 3 timezones",
    "Zone/0               Città 2958 5.9",
)


def write_cities(path: Path) -> None:
    cities: dict[str, Any] = {}
    for number in range(2_930, 2_960):
        name = f"Città {number}"
        cities[str(number)] = {
            "geonameid": number,
            "name": "Springfield" if number % 10 == 3 else name,
            "population": number * 2000,
            "latitude": -0.5,
            "countrycode": "JP" if number % 2 else "US",
            "admin1code": "01",
            "timezone": f"Zone/{number % 3}",
        }
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
        for part in (
            "30 documents",
            "prefix '293': 10 keys",
            "failed halfway",
            "30 cities are equal",
            "3 of them",
            *QUESTIONS,
        ):
            assert part in text


def test_the_cities_answer_on_a_postgres_server_as_before(tmp_path: Path, postgres_dsn: str) -> None:
    write_cities(tmp_path / "cities.json")
    place = ["--data-dir", str(tmp_path / "data"), "--source", str(tmp_path / "cities.json")]
    command = [sys.executable, str(DEMO.with_name("on_postgres.py")), *place]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert (done.stderr.decode(), done.returncode) == ("", 0)
    text = done.stdout.decode()
    for part in ("30 entries in", "nothing to do", "how many there are: 30", "Springfield", "one inhabitant more"):
        assert part in text
    assert postgres_dsn not in text, "it has a server of its own"


def test_the_demo_raises_when_something_is_not_so(tmp_path: Path) -> None:
    names = runpy.run_path(str(DEMO))
    write_cities(tmp_path / "cities.json")
    path = tmp_path / "cities.db"
    assert names["import_cities"](tmp_path / "cities.json", path) == 30
    with pytest.raises(AssertionError, match="2930 is as it was"):
        names["reopen"](path, tmp_path / "cities.json", {"2930": "changed"})
