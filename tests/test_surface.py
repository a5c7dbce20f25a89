"""Hazard: the public surface drifts: a name appears or is lost, a parameter is renamed, a view lacks a verb."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
import re
import tomllib
import typing
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import apsw
import pytest

import mycelia_storage
from mycelia_storage import (
    BatchError,
    ContractError,
    InvalidValueError,
    LoadReport,
    Namespace,
    Storage,
    StorageError,
    Transaction,
    VersionConflictError,
    errors,
    open_storage,
)
from mycelia_storage.cli.app import options as cli_options
from mycelia_storage.engines.sqlite.failures import to_storage_error

ROOT = Path(mycelia_storage.__file__).parent

# As the design writes them: `self` and `namespace=` (a keyword of every verb on entries) are left out.
ENTRY_VERBS = """
get(key, default=None, *)
get_entry(key, default=MISSING, *)
set(key, value, *, metadata=None, ttl=None, overwrite=True, if_version=None, durable=None)
add(key, value, *, metadata=None, ttl=None, durable=None)
modify(key, function, *, default=MISSING, ttl=KEEP, if_version=None, durable=None)
merge(key, patch, *, ttl=KEEP, if_version=None, durable=None)
increment(key, by=1, *, field=None, ttl=KEEP, durable=None)
touch(key, *, ttl)
take(key, default=MISSING, *, durable=None)
delete(key, *, if_version=None, durable=None)
has(key, *)
get_metadata(key, *)
set_metadata(key, metadata, *, merge=True, if_version=None)
get_many(keys, *)
get_entries(keys, *)
set_many(items, *, metadata=None, ttl=None, overwrite=True, durable=None)
add_many(items, *, metadata=None, ttl=None, durable=None)
delete_many(keys, *, durable=None)
load(items, *, batch_size=1000, on_error='stop', progress=None)
list_keys(*, pattern=None, prefix=None, start_after=None, limit=None, offset=0, reverse=False)
query(filter=None, *, sort=None, limit=None, offset=0, cursor=None, timeout=None)
pages(filter=None, *, sort=None, page_size=100)
scan(filter=None, *, prefix=None, batch_size=500)
count(filter=None, *, timeout=None)
delete_where(filter, *, durable=None)
explain(filter=None, *, sort=None, limit=None)
create_index(*fields, unique=False, name=None)
clear(*)
"""
OTHER_VERBS = """
namespace(name, type=Any)
create_namespace(name, *, metadata=None, exist_ok=False)
delete_namespace(name, *, recursive=False)
list_namespaces(*, prefix=None)
namespace_info(name)
drop_index(name)
list_indexes(*, namespace=None)
clear_all()
"""
STORE_VERBS = """
transaction(*, read_only=False, isolation=None, durable=None, wait=None, max_duration=None)
run_transaction(function, *, attempts=50, deadline=30.0, isolation=None, durable=None)
get_status()
check()
backup(path, *, overwrite=False, progress=None)
restore(path, *, progress=None)
optimize()
migrate(*, to=None)
close()
"""
# Where a mapping's method of the same name has another meaning, the mapping's stands.
MAPPING_WINS = {"get", "clear"}


def as_written(owner: type, name: str, *, namespace: bool) -> str:
    parts: list[str] = []
    starred = False
    for parameter in list(inspect.signature(getattr(owner, name)).parameters.values())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.append(f"*{parameter.name}")
            starred = True
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        if namespace and parameter.name == "namespace":
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.default == "default"
            continue
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(f"{parameter.name}{default}".replace("typing.Any", "Any"))
    return f"{name}({', '.join(parts)})"


def lines(text: str) -> list[str]:
    return text.strip().splitlines()


def public(owner: type) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")}


def test_the_verbs_are_those_of_the_design() -> None:
    for line in lines(ENTRY_VERBS):
        assert as_written(Storage, line.partition("(")[0], namespace=True) == line
    for line in lines(OTHER_VERBS) + lines(STORE_VERBS):
        assert as_written(Storage, line.partition("(")[0], namespace=False) == line
    named = {line.partition("(")[0] for line in lines(ENTRY_VERBS) + lines(OTHER_VERBS) + lines(STORE_VERBS)}
    assert public(Storage) == named


def test_a_transaction_has_every_data_finding_and_namespace_verb() -> None:
    named = {line.partition("(")[0] for line in lines(ENTRY_VERBS) + lines(OTHER_VERBS)}
    assert public(Transaction) == named | {"transaction", "rollback"}
    for name in named - {"namespace"}:
        assert getattr(Transaction, name) is getattr(Storage, name), f"{name} is written twice"


def test_a_view_has_every_verb_on_entries_without_namespace() -> None:
    for line in lines(ENTRY_VERBS):
        name = line.partition("(")[0]
        if name not in MAPPING_WINS:
            expected = re.sub(r"(, )?\*\)$", ")", line)
            assert as_written(Namespace, name, namespace=False) == expected
    mapping = {name for name in dir(MutableMapping) if name not in ("__abstractmethods__", "__slots__", "_abc_impl")}
    mapping -= {name for name in mapping if name.startswith("_MutableMapping")}
    assert mapping <= set(dir(Namespace))


def test_all_is_what_the_package_shows() -> None:
    shown = {
        name
        for name, value in vars(mycelia_storage).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert shown == set(mycelia_storage.__all__)
    assert mycelia_storage.__all__ == sorted(
        mycelia_storage.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name)
    )


def test_every_error_is_public_and_has_a_code_of_its_own() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, StorageError)]
    assert {found.__name__ for found in classes} <= set(mycelia_storage.__all__)
    codes = [found.code for found in classes]
    assert len(set(codes)) == len(codes)
    tree = errors.__doc__ or ""
    for found in classes:
        assert re.search(rf"\b{found.__name__}\b", tree), f"the tree does not draw {found.__name__}"
        assert re.fullmatch(r"[a-z_]+", found.code)


def all_errors() -> list[StorageError]:
    classes = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, StorageError)]
    made = [found(f"about {found.__name__}") for found in classes]
    made.append(VersionConflictError("conflict", 3, 5))
    made.append(ContractError("contract", {"get": "missing"}))
    made.append(BatchError("batch", {"key": InvalidValueError("bad")}, LoadReport(1, 1, ())))
    for error in made:
        error.add_note("a note")
    return made


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: StorageError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error) == error.args[0]
        assert twin.__notes__ == ["a note"]
        for name in ("expected", "actual", "report", "problems"):
            assert getattr(twin, name, None) == getattr(error, name, None)
        if isinstance(error, BatchError):
            assert isinstance(twin, BatchError)
            assert {key: str(value) for key, value in twin.errors.items()} == {
                key: str(value) for key, value in error.errors.items()
            }


def driver_errors() -> list[BaseException]:
    """Every exception class of the driver, and every primary and extended result code of SQLite."""
    found: list[BaseException] = [
        value("made by the test")
        for value in vars(apsw).values()
        if inspect.isclass(value) and issubclass(value, apsw.Error)
    ]
    codes = apsw.mapping_result_codes | apsw.mapping_extended_result_codes
    no_error = (apsw.SQLITE_OK, apsw.SQLITE_ROW, apsw.SQLITE_DONE, apsw.SQLITE_NOTICE, apsw.SQLITE_WARNING)
    found += [
        apsw.exception_for(code) for code in codes.values() if isinstance(code, int) and code & 0xFF not in no_error
    ]
    found.append(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "made by the test"))
    return found


@pytest.mark.parametrize("error", driver_errors(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("committing", [False, True])
def test_every_error_of_the_driver_becomes_one_of_ours(error: Exception, committing: bool) -> None:
    mapped = to_storage_error(error, "the path", committing=committing)
    assert isinstance(mapped, StorageError)
    assert str(mapped)


def test_failed_syncs_are_unknown_outcomes_only_where_a_commit_hangs_on_them() -> None:
    error = apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)
    assert to_storage_error(error, "p", committing=True).code == "outcome_unknown"
    assert to_storage_error(error, "p", committing=False).code == "io"


def test_type_hints_of_public_values_resolve() -> None:
    for name in (
        "CheckReport",
        "CopyProgress",
        "Entry",
        "ImportProblem",
        "ImportReport",
        "LoadProblem",
        "LoadReport",
        "LostEntry",
        "NamespaceInfo",
        "Put",
        "SalvageReport",
        "Status",
        "StorageResult",
    ):
        assert typing.get_type_hints(getattr(mycelia_storage, name))


def test_every_module_imports_and_says_its_job() -> None:
    names = [found.name for found in pkgutil.walk_packages([str(ROOT)], "mycelia_storage.")]
    assert len(names) > 20
    for name in names:
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__doc__, f"{name} does not say what it is for"


def test_the_package_is_typed_and_has_no_stray_files() -> None:
    assert (ROOT / "py.typed").is_file()
    stray = [path for path in ROOT.rglob("*.*") if path.suffix not in (".py", ".pyc", ".typed")]
    assert [path for path in stray if "cache" not in str(path.relative_to(ROOT))] == []


@pytest.mark.parametrize("target", ["memory:", "sqlite"])
def test_a_repr_shows_no_values(tmp_path: Path, target: str) -> None:
    with open_storage(tmp_path / "store.db" if target == "sqlite" else target) as store:
        store.set("key", "secret")
        texts = [repr(store), repr(store.namespace("default")), repr(store.namespace("default", str))]
        with store.transaction() as tx:
            texts.append(repr(tx))
    assert "secret" not in "".join(texts)
    assert "closed" in repr(store)
    values: list[Any] = [store]
    assert all(isinstance(value, Storage) for value in values)


def test_who_first_looks_is_told_of_all_three_engines() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for text in (project["description"], mycelia_storage.__doc__, cli_options.__doc__):
        assert all(engine in (text or "") for engine in ("SQLite", "PostgreSQL", "in memory")), text
