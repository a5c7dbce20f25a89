"""The verbs of the command line, and the one place where whatever fails becomes one line and an exit code.

Called by `main`. A verb opens the store, calls it and prints. What is longer stands in `importing`, `importing_from`
and `exporting`, the verbs that ask what documents contain in `querying`, the one that deletes in `deleting`, those on
indexes in `indexes`, those on backups in `backups`, the one that copies between stores in `moving`, those on damage
and migrations in `repairs` and `doctor`, and the one on keys in `keys`.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

import msgspec
import typer
from typer.main import get_command

from mycelia_storage import Storage, __version__, open_storage
from mycelia_storage.cli import backups, deleting, doctor, failures, indexes, keys, moving, output, querying, repairs
from mycelia_storage.cli.exporting import export
from mycelia_storage.cli.failures import CommandError, InputError, UsageError
from mycelia_storage.cli.importing import ImportOptions, Outcome, run_import
from mycelia_storage.cli.importing_from import import_from_library
from mycelia_storage.cli.listing import key_pages
from mycelia_storage.cli.opening import (
    ENVIRONMENT,
    Namespace,
    is_new_file,
    open_store,
    open_to_read,
    refuse_password,
    target_of,
)
from mycelia_storage.errors import StorageError
from mycelia_storage.json_texts import decode_line
from mycelia_storage.keys import DEFAULT_NAMESPACE
from mycelia_storage.options import read_options

if TYPE_CHECKING:
    from collections.abc import Sequence


_DEBUG_ENVIRONMENT: Final = "MYCELIA_STORAGE_DEBUG"

app: typer.Typer = typer.Typer(
    name=output.PROGRAM,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done; 1 not found, or bad input lines; 2 wrong use; 3 the store or a file failed;"
        " 130 interrupted; 141 nobody reads the output."
    ),
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        output.show_text(f"{output.PROGRAM} {__version__}\n")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET", envvar=ENVIRONMENT, help="The store: a path, sqlite:///…, memory: or postgresql://…"
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """JSON documents under a namespace and a key, in a SQLite file, on a PostgreSQL server or in memory.

    Output is JSON in a pipe and readable on a terminal; an error is one line on standard error.
    """
    origin = context.get_parameter_source("store")
    if origin is not None and origin.name == "COMMANDLINE":
        refuse_password("--store", store or "")
    context.obj = store


@app.command()
def get(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    raw: Annotated[bool, typer.Option("--raw", help="Print a text value as it is, without quotes.")] = False,
    entry: Annotated[bool, typer.Option("--entry", help="Print metadata, version and times too.")] = False,
) -> None:
    """Print the value under KEY as JSON."""
    if raw and entry:
        raise UsageError("--raw and --entry cannot go together")
    with open_to_read(context) as store:
        found = store.get_entry(key, namespace=namespace)
    if raw and isinstance(found.value, str):
        output.show_text(found.value)
    else:
        output.show_json(msgspec.to_builtins(found) if entry else found.value)


@app.command("set")
def set_value(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The value; - reads it from standard input.")],
    namespace: Namespace = DEFAULT_NAMESPACE,
    is_json: Annotated[bool, typer.Option("--json", help="TEXT is JSON, not a text to be kept as it is.")] = False,
    ttl: Annotated[float | None, typer.Option(metavar="SECONDS", help="Let the entry expire after this time.")] = None,
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="The entry's metadata, an object.")] = None,
) -> None:
    """Store TEXT under KEY, in place of what is there."""
    data = sys.stdin.buffer.read() if text == "-" else os.fsencode(text)
    value = _parse(data, "TEXT") if is_json else _decode(data)
    about = None if metadata is None else _parse(os.fsencode(metadata), "--metadata")
    if about is not None and type(about) is not dict:
        raise UsageError("--metadata is no JSON object")
    put = partial(
        Storage.set, key=key, value=value, metadata=cast("dict[str, Any] | None", about), ttl=ttl, namespace=namespace
    )
    if is_new_file(target_of(context)):
        with open_storage("memory:") as trial:  # what cannot be stored is noticed before a file is made
            put(trial)
    with open_store(context, create=True) as store:
        new = put(store)
    output.show_facts({"key": key, "version": new}, f"stored {key!r}")


app.command()(deleting.delete)


@app.command("list")
def list_keys(
    context: typer.Context,
    namespace: Namespace = DEFAULT_NAMESPACE,
    pattern: Annotated[str | None, typer.Option(help="Keys that match; * stands for any characters.")] = None,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Keys that begin with TEXT.")] = None,
    start_after: Annotated[str | None, typer.Option(metavar="KEY", help="Keys behind KEY in the order.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="At most so many.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many at the beginning.")] = 0,
    reverse: Annotated[bool, typer.Option("--reverse", help="From the last key to the first.")] = False,
    null: Annotated[bool, typer.Option("--null", "-0", help="End each key with a NUL instead of a line end.")] = False,
) -> None:
    """Print keys in their order, one a line."""
    with open_to_read(context) as store:
        pages = key_pages(
            store,
            limit,
            namespace=namespace,
            pattern=pattern,
            prefix=prefix,
            start_after=start_after,
            offset=offset,
            reverse=reverse,
        )
        for keys in pages:
            output.show_keys(keys, "\0" if null else "\n")


@app.command("import")
def import_file(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to read; - is standard input.")],
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", metavar="NAME", help="The namespace; an export's own, or else default."),
    ] = None,
    format: Annotated[
        Literal["auto", "jsonl", "array", "object", "csv", "export"],
        typer.Option(help="JSON Lines, a JSON array, a JSON object of documents, CSV, or an export."),
    ] = "auto",
    key: Annotated[str | None, typer.Option(metavar="FIELD", help="The field that is the key.")] = None,
    number_from: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Without --key: the first running number.")
    ] = None,
    on_error: Annotated[
        Literal["stop", "skip"], typer.Option(help="At a bad line: stop, or leave it out and go on.")
    ] = "stop",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Documents a transaction.")] = 1000,
    delimiter: Annotated[str | None, typer.Option(metavar="CHAR", help="What parts the columns of CSV.")] = None,
    csv_types: Annotated[
        Literal["text", "infer"], typer.Option(help="CSV columns as text, or as the numbers they look like.")
    ] = "text",
) -> None:
    """Store the documents of FILE, a transaction a batch, however large it is."""
    outcome = run_import(
        ImportOptions(
            target=target_of(context),
            file=file,
            namespace=namespace,
            format=None if format == "auto" else format,
            key_field=key,
            number_from=number_from,
            on_error=on_error,
            batch_size=batch_size,
            delimiter=delimiter,
            infer_types=csv_types == "infer",
        )
    )
    output.show_facts(_facts(outcome), _sentence(outcome))
    if outcome.stopped is not None:
        raise InputError(outcome.stopped)
    if outcome.failed:
        were = "was" if outcome.failed == 1 else "were"
        raise InputError(f"{output.counted(outcome.failed, f'bad {outcome.unit}')} {were} left out")


@app.command("export")
def export_entries(
    context: typer.Context,
    namespace: Namespace = DEFAULT_NAMESPACE,
    everything: Annotated[bool, typer.Option("--all", help="Every namespace.")] = False,
    file: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write FILE, once it is whole.")
    ] = None,
) -> None:
    """Write entries and indexes as JSON Lines, from which import makes the same again."""
    if everything and namespace != DEFAULT_NAMESPACE:
        raise UsageError("--all and --namespace cannot go together")
    if file == "-":
        file = None
    path = read_options(target_of(context), {}).path
    if file is not None and os.path.realpath(file) in (path, f"{path}-wal", f"{path}-shm"):
        raise UsageError(f"--output {file} would replace the store itself")
    with open_to_read(context) as store:
        done = export(store, file, None if everything else namespace)
    if file is not None:
        facts: dict[str, object] = {
            "entries": done.entries,
            "namespaces": done.namespaces,
            "seconds": round(done.seconds, 3),
        }
        output.show_facts(facts, f"exported {output.entry_count(done.entries)} to {file} in {done.seconds:.1f} s")


app.command("import-from")(import_from_library)
app.command()(querying.query)
app.command()(querying.count)
app.command()(querying.explain)
app.add_typer(indexes.index, name="index")


@app.command()
def namespaces(
    context: typer.Context,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Those that begin with TEXT.")] = None,
) -> None:
    """List the namespaces, with their entries."""
    with open_to_read(context) as store, store.transaction(read_only=True) as tx:
        rows = [msgspec.to_builtins(tx.namespace_info(name)) for name in tx.list_namespaces(prefix=prefix)]
    headings = {"name": "namespace", "entries": "entries", "created_at": "created", "metadata": "metadata"}
    output.show_table(rows, headings)


@app.command()
def status(context: typer.Context) -> None:
    """Tell what the store is and how much it holds."""
    with open_to_read(context) as store:
        output.show_fields(msgspec.to_builtins(store.get_status()))


app.command()(repairs.check)
app.command()(backups.backup)
app.command()(backups.restore)
app.command()(moving.copy)
app.command()(keys.rekey)
app.command()(repairs.salvage)
app.command()(repairs.migrate)
app.command()(doctor.doctor)


def _refuse_glued_namespace(arguments: Sequence[str]) -> None:
    """`-name` is meant as a field that descends, and would be taken for `-n ame`."""
    for before, argument in pairwise(("", *arguments)):
        if argument == "--":
            return
        if argument.startswith("-n") and len(argument) > 2 and before != "--sort":
            name = argument[2:]
            raise UsageError(f"{argument}: write '-n {name}' for a namespace, and fields like it behind '--'")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code, whatever happens."""
    try:
        try:
            _refuse_glued_namespace(arguments)
            with output.warnings_reported():
                return _invoke(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _forget_output()
        return failures.NOBODY_READS
    except (KeyboardInterrupt, typer.Abort):
        output.report("interrupted")
        return failures.INTERRUPTED
    except CommandError as error:
        output.report(str(error))
        return error.exit_code
    except StorageError as error:
        output.report(failures.message_of(error))
        return failures.exit_code_of(error)
    except typer.TyperException as error:
        message = error.format_message()
        output.report(f"{message} ({'it stands before the verb' if '--store' in message else 'see --help'})")
        return failures.WRONG_USE
    except OSError as error:
        _forget_output()
        output.report(error.strerror or str(error))
        return failures.STORAGE_FAILED
    except Exception as error:
        # The message of an error that nobody foresaw may hold a value, so that its type has to do.
        if os.environ.get(_DEBUG_ENVIRONMENT):
            raise
        output.report(f"unexpected {type(error).__name__}; {_DEBUG_ENVIRONMENT}=1 shows where")
        return failures.STORAGE_FAILED


def _invoke(arguments: Sequence[str]) -> int:
    command = get_command(app)
    try:
        with command.make_context(output.PROGRAM, list(arguments) or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code if arguments else failures.WRONG_USE
    return failures.DONE


def _forget_output() -> None:
    """Let what is still buffered go nowhere, or Python would complain once more at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _parse(data: bytes, what: str) -> object:
    try:
        return decode_line(data)
    except ValueError as error:
        raise UsageError(f"{what} is {error}") from None


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"TEXT is not UTF-8: byte {error.start + 1}") from None


def _facts(outcome: Outcome) -> dict[str, object]:
    facts: dict[str, object] = {
        "format": outcome.format,
        "namespaces": outcome.namespaces,
        "loaded": outcome.loaded,
        "replaced": outcome.replaced,
        "failed": outcome.failed,
        "expired": outcome.expired,
        "bytes": outcome.bytes_read,
        "seconds": round(outcome.seconds, 3),
    }
    return facts | {"indexes": outcome.indexes} if outcome.format == "export" else facts


def _sentence(outcome: Outcome) -> str:
    where = ", ".join(map(repr, outcome.namespaces)) or "nowhere"
    rate = outcome.loaded / max(outcome.seconds, 1e-9)
    parts = [f"{output.entry_count(outcome.loaded)} into {where} in {outcome.seconds:.1f} s ({rate:,.0f}/s)"]
    if outcome.replaced:
        parts.append(f"{outcome.replaced:,} of them in place of entries with the same key")
    if outcome.failed:
        parts.append(f"{outcome.failed:,} bad")
    if outcome.expired:
        parts.append(f"{outcome.expired:,} already expired and left out")
    if outcome.indexes:
        parts.append(output.counted(outcome.indexes, "index", "indexes"))
    return "; ".join(parts)
