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

import pytest

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = ["set", "overwrite", "get", "has", "get_many", "list_keys", "count", "set_many", "delete"]
OURS = ["raw", "sqlite", "memory"]
QUERIES = [
    "equality, no index",
    "count with a filter, no index",
    "equality, index",
    "range, sort, limit 10, index",
    "count with a filter, index",
]


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


def test_queries_are_measured_in_both_files_and_drawn(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    done = bench(
        "--queries", "200", "--rounds", "2", "--dir", str(tmp_path), "--json", str(figures), "--svg", str(plot)
    )  # fmt: skip

    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert "operations" not in measured
    queries = measured["queries"]
    assert queries["documents"] == 200
    for part, subjects in (("alone", OURS), ("among", ["raw", "sqlite"])):
        assert list(queries[part]) == QUERIES
        for by_subject in queries[part].values():
            assert sorted(by_subject) == sorted(subjects)
            for one in by_subject.values():
                assert len(one["rounds"]) == 2
                assert one["microseconds"] > 0
    assert sorted(queries["loaded"]["equality, no index"]) == ["load, json", "load, orjson", "raw", "sqlite"]
    assert list(queries["sets"]) == ["set", "overwrite"]
    assert sorted(queries["sets"]["set"]) == ["raw", "raw, same index", "sqlite"]

    judged = [verdict["what"] for verdict in measured["targets"]]
    assert "equality, index vs raw" in judged
    assert "equality, index, 1/20 of the file vs raw" in judged
    assert "equality, no index, 400 documents vs load, json" in judged
    assert "set, new key, with an index vs raw, same index" in judged
    for what in [*judged, *QUERIES]:
        assert what in done.stdout
    assert "would help" not in done.stderr, "the library's advice is kept quiet"

    drawing = ET.parse(plot).getroot()
    texts = {element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")}
    assert {"sqlite", "memory", *QUERIES} <= texts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "plot.svg"], "the files are removed"


def test_the_first_page_and_the_last_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--pages", "3000", "--json", str(figures))
    pages = json.loads(figures.read_text(encoding="utf-8"))["pages"]
    assert pages["entries"] == 3000
    assert list(pages["first"]) == list(pages["last"]) == ["key", "score", "-score"]
    assert all(times for times in [*pages["first"].values(), *pages["last"].values()])
    assert "page of 100 at the end of 3,000 by -score vs the first" in done.stdout


def test_an_answer_that_differs_ends_the_run() -> None:
    program = (
        "import sys\n"
        "from mycelia_storage import Storage\n"
        "Storage.count = lambda self, *arguments, **options: -1\n"
        "from benchmarks.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        bench("--queries", "50", "--rounds", "1", program=("-c", program))
    assert "WrongAnswerError: sqlite, count with a filter, no index" in caught.value.stderr


def test_opening_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--open", "2000", "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert measured["open"]["entries"] == 2000
    assert set(measured["open"]["alone"]["sqlite"]) == {"new", "empty", "full"}
    assert "open 2,000 entries vs empty" in done.stdout
    assert "operations" not in measured


def test_checksums_and_encryption_are_measured_where_the_driver_can(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--guards", "500", "--rounds", "1", "--json", str(figures))
    guards = json.loads(figures.read_text(encoding="utf-8"))["guards"]
    assert guards["documents"] == 500
    assert all(list(by_subject) == ["sqlite", "checksums"] for by_subject in guards["seconds"].values())
    assert {"set", "get", "open", "scan, just opened"} <= set(guards["seconds"])
    assert "encrypted: left out" in done.stderr


def test_importing_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    bench("--import", "400", "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    small, large = measured["import"]
    assert (small["documents"], large["documents"]) == (50, 400)
    assert small["peak_mb"] > 0
    assert large["peak_mb"] > 0
    assert [(one["file"], one["documents"]) for one in measured["import_from"]] == [
        ("words.sqlite", 400),
        ("tiny.json", 400),
    ]


def test_threads_and_processes_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--threads", "0.05", "--rounds", "1", "--dir", str(tmp_path), "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    threads = measured["threads"]
    assert sorted(threads["writes"]) == ["FULL", "NORMAL"]
    for by_subject in threads["writes"].values():
        assert list(by_subject["sqlite"]) == ["1", "16", "64"]
        assert all(rounds[0] > 0 for rounds in by_subject["sqlite"].values())
    assert threads["turns"]["sqlite"][0]["changes_per_second"] > 0
    judged = [verdict["what"] for verdict in measured["targets"]]
    assert len(judged) == 7
    for what in judged:
        assert what in done.stdout
    assert "operations" not in measured
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "the files are removed"


def test_tasks_are_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--async", "400", "--rounds", "1", "--dir", str(tmp_path), "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    lines = ["set, 256 tasks", "set at FULL, 256 tasks", "set, one task", "get, 256 tasks", "get_many(100), one task"]
    assert sorted(measured["async"]) == sorted(lines)
    for by_subject in measured["async"].values():
        assert {"raw", "sqlite", "a hop a call"} <= by_subject.keys()
        assert all(one["microseconds"] > 0 for one in by_subject.values())
    for line in lines:
        assert f"{line} vs raw" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "the files are removed"


def test_upkeep_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--upkeep", "2000", "--rounds", "1", "--dir", str(tmp_path), "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    assert [removal["entries"] for removal in measured["upkeep"]["removals"]] == [2000, 10]
    for removal in measured["upkeep"]["removals"]:
        assert len(removal["beside"]) == 1
        assert removal["beside"][0] > 0
    assert measured["upkeep"]["backups"]["ours"][0] > 0
    judged = [verdict["what"] for verdict in measured["targets"]]
    assert len(judged) == 3
    for what in judged:
        assert what in done.stdout
    assert "operations" not in measured
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "the files are removed"


def test_a_postgres_server_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--postgres", "300", "--rounds", "1", "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    for side in ("ours", "by_hand"):
        assert sorted(measured["postgres"][side]) == ["get", "query", "set", "set_many"]
        assert all(rounds[0] > 0 for rounds in measured["postgres"][side].values())
    assert len(measured["targets"]) == 4
    for verdict in measured["targets"]:
        assert verdict["what"] in done.stdout


def test_moving_is_measured(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = bench("--moving", "3000", "--dir", str(tmp_path), "--json", str(figures))
    measured = json.loads(figures.read_text(encoding="utf-8"))
    leg = measured["moving"]["legs"][0]
    assert (leg["target"], leg["entries"], len(leg["pauses"])) == ("sqlite", 3000, 3)
    assert [entries for entries, _ in measured["moving"]["peaks"]] == [375, 3000]
    for verdict in measured["targets"]:
        assert verdict["what"] in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "the files are removed"
