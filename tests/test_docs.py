"""The documentation is true: its examples run, its links lead somewhere, and its tables leave nothing out."""

from __future__ import annotations

import ast
import contextlib
import doctest
import gzip
import importlib
import logging
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import types
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

import mycelia_storage
from mycelia_storage import Storage, StorageError, StorageOptions, errors
from mycelia_storage.engines import engine, kit, plain
from mycelia_storage.options import DEFAULT_TARGET, Options

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "mycelia_storage"

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)

# The examples of one page need the driver that encrypts: each driver's environment runs what it can.
IS_ENCRYPTING = hasattr(apsw, "mc_version")
RUNNING = [page for page in PAGES if (page.name == "encryption.md") is IS_ENCRYPTING]

NOT_RUN = "<!-- not run -->"
SHELL = ("sh", "console")
COMMAND = "mycelia-storage"

# Files that the pages' commands read and no command of theirs makes.
INPUTS = {
    "people.jsonl": b'{"id": "ada", "born": 1815}\n{"id": "alan", "born": 1912}\n',
    "cities.json": b"""{
"2930": {"name": "Tokyo", "country": "JP", "population": 9733276},
"2931": {"name": "Osaka", "country": "JP", "population": 2753862, "at": {"lat": 34.7}},
"2932": {"name": "Tema", "country": "GH", "population": 161612}
}
""",
    "db.json": b'{"_default": {"1": {"a": 1}}, "people": {"1": {"name": "Ada"}}}',
    "log.jsonl.gz": gzip.compress(b'{"at": 1}\n{"at": 2}\n', mtime=0),
}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@dataclass
class Block:
    """A fenced block of a page; `line` is that of its first line of text."""

    language: str
    line: int
    is_run: bool
    lines: list[str] = field(default_factory=list[str])


@dataclass
class Shown:
    """A command of a shell block, and what the page shows as its output; None where it shows none."""

    text: str
    line: int
    output: list[str] | None


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    current: Block | None = None
    before = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if current is not None:
            if line.strip() == "```":
                current = None
            else:
                current.lines.append(line)
        elif line.startswith("```"):
            current = Block(line.removeprefix("```").strip(), number + 1, before.strip() != NOT_RUN)
            blocks.append(current)
        else:
            assert not line.lstrip().startswith("```"), f"{page}:{number}: an indented block is not looked at"
        if line.strip():
            before = line
    assert current is None, f"{page}: a block is not closed"
    return blocks


def prose_of(page: Path) -> str:
    """A page without its blocks, the code within its lines, and hidden comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"<!--.*?-->|`[^`\n]*`", "", text, flags=re.DOTALL)


def rows_of(page: Path, *headings: str) -> list[list[str]]:
    """The cells of every row of the page's tables that have these headings."""
    rows: list[list[str]] = []
    is_inside = False
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if cells == list(headings):
            is_inside = True
        elif not cells:
            is_inside = False
        elif is_inside and set(cells) != {"---"}:
            rows.append(cells)
    assert rows, f"{page}: no table has the headings {headings}"
    return rows


# ---- examples


@pytest.fixture
def page_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory with the command line on the path; what a page did to logging is undone."""
    programs = tmp_path / "programs"
    programs.mkdir()
    program = programs / COMMAND
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mycelia_storage.cli "$@"\n')
    program.chmod(0o755)
    directory = tmp_path / "page"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])))
    monkeypatch.delenv("MYCELIA_STORAGE", raising=False)
    yield directory
    logger = logging.getLogger("mycelia_storage.sql")
    logger.setLevel(logging.NOTSET)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()


@pytest.fixture
def page_database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a page that wants one, a database of its own on the tests' server, in `DATABASE_URL`."""
    page: Path = request.getfixturevalue("page")
    if "DATABASE_URL" not in page.read_text(encoding="utf-8"):
        yield
        return
    import psycopg
    from psycopg.sql import SQL, Identifier

    dsn: str = request.getfixturevalue("postgres_dsn")
    name = Identifier(f"page_{page.stem}")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("drop database if exists {} with (force)").format(name))
        connection.execute(SQL("create database {}").format(name))
        monkeypatch.setenv("DATABASE_URL", f"{dsn.rpartition('/')[0]}/page_{page.stem}")
        yield
        connection.execute(SQL("drop database {} with (force)").format(name))


@pytest.mark.parametrize("page", RUNNING, ids=page_id)
def test_the_examples_of_a_page_run(
    page: Path, page_directory: Path, page_database: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType(f"page_{page.stem.lower().replace('-', '_')}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    environment = dict(os.environ)
    try:
        for block in blocks_of(page):
            if not block.is_run:
                continue
            if block.language == "python":
                run_python(page, block, module)
            elif block.language in SHELL:
                for shown in commands_of(block):
                    run_command(page, shown, page_directory, environment)
    finally:
        module.__dict__.clear()


def run_python(page: Path, block: Block, module: types.ModuleType) -> None:
    # Empty lines in front, so that a traceback names the line of the page.
    text = "\n" * (block.line - 1) + "\n".join(block.lines)
    code = compile(text, str(page), "exec", dont_inherit=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, module.__dict__)


def commands_of(block: Block) -> list[Shown]:
    """The commands of a shell block. In a console block they stand behind a dollar sign, between their outputs."""
    commands: list[Shown] = []
    continued = False
    for number, line in enumerate(block.lines, start=block.line):
        if continued:
            commands[-1].text += "\n" + line
        elif block.language == "console" and not line.startswith("$ "):
            if commands:
                commands[-1].output = [*(commands[-1].output or []), line]
            continue
        elif line.strip():
            commands.append(Shown(line.removeprefix("$ "), number, None))
        continued = line.endswith("\\")
    return commands


def run_command(page: Path, shown: Shown, directory: Path, environment: dict[str, str]) -> None:
    """Run a command of ours and compare its output; keep what `export` sets; leave other programs alone."""
    words = shlex.split(shown.text, comments=True)
    if words[:1] == ["export"]:
        for word in words[1:]:
            name, _, value = word.partition("=")
            environment[name] = value
    if COMMAND not in words or words[0] == "pip":
        return
    for name, content in INPUTS.items():
        if name in words and not (directory / name).exists():
            (directory / name).write_bytes(content)
    done = subprocess.run(
        ["sh", "-c", shown.text], cwd=directory, env=environment, capture_output=True, timeout=60, check=False
    )
    where = f"{page}:{shown.line}: {shown.text}"
    assert done.returncode == 0, f"{where}\nexit code {done.returncode}\n{done.stderr.decode()}"
    if shown.output is not None:
        assert without_times("\n".join(shown.output)) == without_times(done.stdout.decode()), where


def without_times(output: str) -> str:
    """What a command prints, but for versions, seconds and times, which are others at each run."""
    return re.sub(r"\b\d{13,}\b|\b\d+\.\d+\b|\d{4}-\d\d-\d\d[T ][\d:.]+\w*", "_", output).strip()


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_examples_are_written_as_programs(page: Path) -> None:
    assert not [line for block in blocks_of(page) for line in block.lines if line.startswith(">>>")]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_exists(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:`|^|; )make ([a-z]+)", text, flags=re.MULTILINE)) <= targets


# ---- links


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    anchors: set[str] = set()
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchor, number = base, 0
        while anchor in anchors:
            number += 1
            anchor = f"{base}-{number}"
        anchors.add(anchor)
    return anchors


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists() or (anchor and anchor not in anchors_of(path)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index


# ---- tables against the code


def names_in(text: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", text))


def test_contributing_names_files_that_exist() -> None:
    names = {name for name in names_in((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) if looks_like_path(name)}
    assert {name for name in names if not ((PACKAGE / name).exists() or (ROOT / name).exists())} == set()


def looks_like_path(name: str) -> bool:
    return re.fullmatch(r"[\w./-]+(\.py|\.md|/)", name) is not None


def test_contributing_leaves_no_source_file_out() -> None:
    rows = rows_of(ROOT / "CONTRIBUTING.md", "layer", "file", "responsibility")
    named = {name for row in rows for name in names_in(row[1])}
    missing: list[str] = []
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE)
        packages = {f"{parent.as_posix()}/" for parent in file.parents if parent != Path()}
        if path.name == "__init__.py" and file.parent != Path():
            # Of a package that is named file by file, its files stand for it.
            is_named = any(name.startswith(f"{file.parent.as_posix()}/") for name in named)
        else:
            is_named = file.as_posix() in named
        if not is_named and not packages & named:
            missing.append(file.as_posix())
    assert missing == []


def test_set_can_be_followed_as_contributing_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d\. `(.+?\.py)`: (.*?)(?=^\d\. |^$)", text, flags=re.DOTALL | re.MULTILINE)
    assert [file for file, _ in steps] == [
        "storage.py",
        "verbs.py",
        "engines/sqlite/auto.py",
        "engines/sqlite/session.py",
    ]
    for file, step in steps:
        code = (PACKAGE / file).read_text(encoding="utf-8")
        for name in names_in(step):
            assert re.search(rf"\b{re.escape(name)}\b", code), f"{name} is not in {file}"


def test_every_option_is_documented_with_its_default() -> None:
    rows = rows_of(ROOT / "docs" / "configuration.md", "option", "default", "what it does")
    documented = {row[0].strip("`"): evaluated(row[1].strip("`")) for row in rows}
    elsewhere: dict[str, object] = {"db_path": DEFAULT_TARGET, "base_dir": None}
    options = Options(backend="sqlite")
    defaults = {name: getattr(options, name, elsewhere.get(name)) for name in StorageOptions.__annotations__}
    assert documented == defaults


def evaluated(text: str) -> object:
    if text == "time.time":
        return time.time
    with contextlib.suppress(ValueError):
        return ast.literal_eval(text)
    product = 1
    for factor in text.split("*"):
        product *= int(factor)
    return product


def test_every_error_is_documented() -> None:
    page = ROOT / "docs" / "errors.md"
    found = rows_of(page, "error", "code", "retryable", "what it means, what to do")
    rows = {row[0].strip("`"): row for row in found}
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, StorageError) and kind is not StorageError
    }
    assert set(rows) == set(classes)
    tree = "\n".join(next(block for block in blocks_of(page) if block.language == "text").lines)
    for name, kind in classes.items():
        assert rows[name][1] == f"`{kind.code}`"
        assert rows[name][2] == ("yes" if kind.retryable else "no")
        assert re.search(rf"\b{name}\b", tree)


def test_the_guide_for_engines_names_every_part_of_the_kit() -> None:
    rows = rows_of(ROOT / "docs" / "writing-an-engine.md", "name in `kit`", "what for")
    assert {name for row in rows for name in names_in(row[0])} == set(kit.__all__)
    for module in (kit, plain, engine):
        assert not [name for name in module.__all__ if not hasattr(module, name)]


def test_the_quickstart_names_every_verb() -> None:
    rows = rows_of(ROOT / "docs" / "quickstart.md", "for", "verbs")
    public = {name for name in dir(Storage) if not name.startswith("_")}
    assert {name for row in rows for name in names_in(row[1])} == public


def test_the_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    assert newest is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert newest[1] == mycelia_storage.__version__ == project["version"]
