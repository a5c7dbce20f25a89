"""The benchmark harness works: it measures every operation, tells what is left out, and writes its tables and files.

Run with few documents. What is measured is not judged here: a busy machine is no defect.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ["set", "overwrite", "get", "has", "get_many", "list_keys", "count", "set_many", "delete"]
OURS = ["raw", "sqlite", "memory"]


def bench(*arguments: str, program: tuple[str, ...] = ("-m", "benchmarks")) -> subprocess.CompletedProcess[str]:
    """Run the harness as its users do, from the project's root."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=True,
    )


def test_every_operation_is_measured_and_reported(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    done = bench(
        "--documents", "300", "--rounds", "2", "--only", *OURS, "--dir", str(tmp_path),
        "--json", str(figures), "--svg", str(plot),
    )  # fmt: skip

    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert list(measured["operations"]) == OPERATIONS
    for by_subject in measured["operations"].values():
        assert sorted(by_subject) == sorted(OURS)
        assert by_subject["raw"]["speed"] == 1
        for one in by_subject.values():
            assert len(one["rounds"]) == 2
            assert one["microseconds"] > 0
            assert one["speed"] > 0
    assert measured["environment"]["cpus"] >= 1

    assert "300 documents" in done.stdout
    assert "microseconds" in done.stdout
    assert "speed, raw = 1" in done.stdout
    judged = [verdict["what"] for verdict in measured["targets"]]
    assert "set_many(10,000) vs raw" in judged
    for what in judged:
        assert what in done.stdout

    drawing = ET.parse(plot).getroot()
    texts = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"sqlite", "memory", "get", "set, new key", "raw = 1"} <= texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "plot.svg"], "the files are removed"


def test_operations_can_be_chosen_and_need_no_other() -> None:
    done = bench("--documents", "50", "--rounds", "1", "--only", "sqlite", "--ops", "get", "delete")
    assert "get " in done.stdout
    assert "delete " in done.stdout
    assert "list_keys" not in done.stdout


def test_a_peer_that_is_not_installed_is_left_out_and_told_of() -> None:
    program = (
        "import sys; sys.modules['diskcache'] = None\n"
        "from benchmarks.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    done = bench(
        "--documents", "50", "--rounds", "1", "--only", "sqlite", "diskcache", "--ops", "get", program=("-c", program)
    )
    assert "diskcache: left out" in done.stderr
    assert "jsondisk" not in done.stderr
    assert "vs diskcache" not in done.stdout


def test_every_peer_that_is_installed_does_the_workload() -> None:
    peers = ["diskcache", "jsondisk", "sqlitedict", "sqlitedict-json", "langgraph"]
    done = bench("--documents", "100", "--rounds", "1", "--only", *peers)
    for peer in peers:
        assert peer in done.stdout or f"{peer}: left out" in done.stderr


def test_opening_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--open", "2000", "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert measured["open"]["entries"] == 2000
    assert set(measured["open"]["alone"]["sqlite"]) == {"new", "empty", "full"}
    assert "open 2,000 entries vs empty" in done.stdout
    assert "operations" not in measured


def test_importing_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    bench("--import", "400", "--json", str(figures))
    small, large = json.loads(figures.read_text(encoding="utf-8"))["import"]
    assert (small["documents"], large["documents"]) == (50, 400)
    assert small["peak_mb"] > 0
    assert large["peak_mb"] > 0
