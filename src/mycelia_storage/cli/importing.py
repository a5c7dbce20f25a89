"""The verb `import`: documents from a file into a namespace, a transaction a batch, with every bad line reported.

Called by `app`. `source` finds the format, `readers` and `export_format` take the text apart; here each document
gets its key and goes into `Storage.load`, and what becomes of it is told with the number of its line or item.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import chain, groupby, islice
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from mycelia_storage import open_storage
from mycelia_storage.cli.export_format import VERSION, EntryLine, Header, IndexLine, NamespaceLine, parse
from mycelia_storage.cli.failures import INTERRUPTED, CommandError, UsageError, exit_code_of, message_of
from mycelia_storage.cli.opening import is_new_file, open_target, options_from_environment
from mycelia_storage.cli.output import entry_count
from mycelia_storage.cli.progress import ImportProgress
from mycelia_storage.cli.readers import (
    Problem,
    infer_type,
    read_csv,
    read_json_array,
    read_json_lines,
    read_json_object,
)
from mycelia_storage.cli.source import detect_format, open_source
from mycelia_storage.entries import Put
from mycelia_storage.errors import (
    BatchError,
    CapacityError,
    IndexExistsError,
    InvalidFilterError,
    InvalidNamespaceError,
    InvalidValueError,
    StorageError,
    UniqueIndexError,
)
from mycelia_storage.json_texts import UnreadableError
from mycelia_storage.keys import DEFAULT_NAMESPACE, check_namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mycelia_storage import Storage
    from mycelia_storage.cli.readers import Record, Records
    from mycelia_storage.cli.source import Format, Source
    from mycelia_storage.entries import LoadReport

# Wide enough that keys sort as their numbers do.
_NUMBER_WIDTH: Final = 12
_MOST_UNREPORTED: Final = 1000


@dataclass(frozen=True)
class ImportOptions:
    """What the user asked for; None where nothing was said."""

    target: str
    file: str
    namespace: str | None = None
    format: Format | None = None
    key_field: str | None = None
    number_from: int | None = None
    on_error: Literal["stop", "skip"] = "stop"
    batch_size: int = 1000
    delimiter: str | None = None
    infer_types: bool = False


@dataclass
class Outcome:
    """What an import did. `stopped` tells why it ended before its input did."""

    format: Format
    namespaces: list[str] = field(default_factory=list[str])
    loaded: int = 0
    replaced: int = 0
    failed: int = 0
    expired: int = 0
    indexes: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    stopped: str | None = None

    @property
    def unit(self) -> str:
        """What the numbers in reports count."""
        return "item" if self.format in ("array", "object") else "line"


def run_import(options: ImportOptions) -> Outcome:
    """Do the import. Bad lines are reported on the way; where one stops it, the outcome says so."""
    with open_source(options.file) as source:
        outcome = Outcome(options.format or detect_format(source))
        _check(options, outcome.format)
        clock = _BatchClock()
        is_export = outcome.format == "export"
        given = options_from_environment()
        if is_export:
            given["clock"] = clock.read
        with ExitStack() as stack, ImportProgress(source) as progress:
            run = _Import(
                lambda: stack.enter_context(open_target(options.target, given, create=True)),
                options,
                outcome,
                progress,
                clock,
            )
            if not is_new_file(options.target):
                run.open()
            try:
                load = run.load_export if is_export else run.load_documents
                load(source)
            except _StopError as stop:
                kept = f"{_stored(outcome, ' of earlier batches')}, none of its own batch"
                outcome.failed += 1
                outcome.stopped = f"{run.place(stop.problem.number)}: {stop.problem.reason} (stopped: {kept})"
            except StorageError as error:
                raise CommandError(f"{message_of(error)} ({_stored(outcome)})", exit_code_of(error)) from error
            except CommandError as error:
                if not outcome.loaded:
                    raise
                raise CommandError(f"{error} ({_stored(outcome)})", error.exit_code) from error
            except KeyboardInterrupt:
                raise CommandError(f"interrupted ({_stored(outcome)})", INTERRUPTED) from None
            finally:
                run.report_problems()
                outcome.bytes_read = source.bytes_read
                outcome.seconds = progress.seconds
    return outcome


def _stored(outcome: Outcome, which: str = "") -> str:
    """What is in the store by now, for the message of an import that ends early."""
    return f"{entry_count(outcome.loaded)}{which} {'is' if outcome.loaded == 1 else 'are'} stored"


def _check(options: ImportOptions, format: Format) -> None:
    """Refuse options that the format would leave without effect."""
    if options.delimiter is not None and (len(options.delimiter) != 1 or options.delimiter in '\r\n"'):
        raise UsageError('--delimiter is one character, and neither a line end nor "')
    has_own_keys = format in ("object", "export")
    for is_given, is_of_use, name in (
        (options.delimiter is not None, format == "csv", "--delimiter"),
        (options.infer_types, format == "csv", "--csv-types infer"),
        (options.key_field is not None, format != "export", "--key"),
        (options.number_from is not None, not has_own_keys and options.key_field is None, "--number-from"),
    ):
        if is_given and not is_of_use:
            behind = " with --key" if options.key_field is not None and not has_own_keys else ""
            raise UsageError(f"{name} has no use for the format {format}{behind}")


class _StopError(Exception):
    """A bad line ends the import. Passes through `Storage.load`, which drops the batch that it was gathering."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.reason)
        self.problem = problem


class _BatchClock:
    """The store's clock during the import of an export: it stands still from one commit to the next.

    An export names the moment when an entry expires, a store takes the time that is left. Only when both read the
    same clock does the entry expire at the same millisecond as before, however long a batch is gathered.
    """

    def __init__(self) -> None:
        self.now_ms = 0
        self.advance()

    def advance(self) -> None:
        # An eighth of a second is exact in milliseconds and as a float of seconds.
        self.now_ms = int(time.time() * 8) * 125

    def read(self) -> float:
        return self.now_ms / 1000


class _Placed(NamedTuple):
    """A line of an export, its number, and the namespace that it concerns; None for an index over all."""

    number: int
    namespace: str | None
    line: EntryLine | NamespaceLine | IndexLine


class _Import:
    """One import into one open store: follows each document from its line to what becomes of it."""

    def __init__(
        self,
        make_store: Callable[[], Storage],
        options: ImportOptions,
        outcome: Outcome,
        progress: ImportProgress,
        clock: _BatchClock,
    ) -> None:
        self._make_store = make_store
        self._opened: Storage | None = None
        self._options = options
        self._outcome = outcome
        self._progress = progress
        self._clock = clock
        self._position = 0  # documents met so far, good and bad
        self._passed_over = 0  # those that could not be read
        # The line numbers of the items that `load` has drawn and not yet settled, the first of them its item _settled.
        self._numbers: deque[int] = deque()
        self._settled = 0
        self._problems: list[Problem] = []

    def open(self) -> Storage:
        """The store. A new one is made when there is a batch for it, and none by an import that fails before."""
        if self._opened is None:
            self._opened = self._make_store()
        return self._opened

    def _count(self, namespace: str) -> int:
        return 0 if self._opened is None else self._opened.count(namespace=namespace)

    def load_documents(self, source: Source) -> None:
        """Everything but exports: all documents into one namespace."""
        namespace = DEFAULT_NAMESPACE if self._options.namespace is None else self._options.namespace
        needs_numbers = self._options.key_field is None and self._outcome.format != "object"
        if needs_numbers and self._options.number_from is None and self._count(namespace):
            raise UsageError(
                f"the namespace {namespace!r} holds entries, which running numbers might replace:"
                " name the field of the key with --key, or the first number with --number-from"
            )
        self._load(namespace, self._with_keys(self._follow(self._read(source))))

    def load_export(self, source: Source) -> None:
        """An export: each entry into its own namespace, with its metadata and its expiry."""
        lines = self._export_lines(self._follow(read_json_lines(source.buffered())))
        for (is_entry, namespace), group in groupby(lines, lambda placed: (type(placed.line) is EntryLine, placed[1])):
            if is_entry and namespace is not None:
                self._load(namespace, self._puts(group))
                continue
            for placed in group:
                if isinstance(placed.line, IndexLine):
                    self._create_index(placed, placed.line)
                elif isinstance(placed.line, NamespaceLine) and namespace is not None:
                    self._create_namespace(placed.number, namespace, placed.line.metadata)

    def _create_namespace(self, number: int, name: str, metadata: dict[str, Any]) -> None:
        def create(store: Storage) -> None:
            store.create_namespace(name, metadata=metadata, exist_ok=True)

        try:
            self._try_first(create)
            create(self.open())
        except InvalidValueError as error:
            self._note(Problem(number, str(error)))

    def _create_index(self, placed: _Placed, line: IndexLine) -> None:
        """Make an index again. Into another namespace it takes a name of its own, since its old one may be in use."""
        name = line.name if self._options.namespace is None else None

        def create(store: Storage) -> None:
            store.create_index(*line.fields, namespace=placed.namespace, unique=line.is_unique, name=name)

        try:
            self._try_first(create)
            create(self.open())
        except (UniqueIndexError, IndexExistsError, CapacityError, InvalidFilterError, InvalidValueError) as error:
            self._note(Problem(placed.number, str(error)))
        else:
            self._outcome.indexes += 1

    def _try_first(self, create: Callable[[Storage], None]) -> None:
        """What is not possible is noticed before a store is made for it."""
        if self._opened is None:
            with open_storage("memory:") as trial:
                create(trial)

    def place(self, number: int) -> str:
        return f"{self._outcome.unit} {number}" if number else "the beginning"

    def report_problems(self) -> None:
        """Tell of the bad lines met so far, in their order."""
        for problem in sorted(self._problems):
            self._progress.report(f"{self.place(problem.number)}: {problem.reason}")
        self._problems.clear()

    def _read(self, source: Source) -> Records:
        stream = source.buffered()
        match self._outcome.format:
            case "array":
                return read_json_array(stream)
            case "object":
                return read_json_object(stream)
            case "csv":
                delimiter = self._options.delimiter or ("\t" if source.suffix == ".tsv" else ",")
                return read_csv(stream, delimiter, infer_type if self._options.infer_types else str)
            case "jsonl" | "export":
                return read_json_lines(stream)

    def _follow(self, records: Records) -> Iterator[Record]:
        """The readable records; what is not is noted."""
        try:
            for record in records:
                self._position += 1
                if isinstance(record, Problem):
                    self._passed_over += 1
                    self._note(record)
                else:
                    yield record
        except UnreadableError as fault:
            self._note(Problem(fault.number, fault.reason))
            self._outcome.stopped = f"nothing behind {self.place(fault.number)} could be read"

    def _with_keys(self, records: Iterator[Record]) -> Iterator[tuple[str, object]]:
        name = self._options.key_field
        first = 1 if self._options.number_from is None else self._options.number_from
        for record in records:
            if name is None:
                key = record.key
                if key is None:
                    key = f"{first + self._position - 1:0{_NUMBER_WIDTH}}"
            else:
                try:
                    key = _field_as_key(record, name)
                except ValueError as error:
                    self._note(Problem(record.number, str(error)))
                    continue
            self._numbers.append(record.number)
            yield key, record.value

    def _puts(self, group: Iterator[_Placed]) -> Iterator[Put]:
        for number, _, line in group:
            entry = cast("EntryLine", line)
            ttl = None
            if entry.expires_at is not None:
                left_ms = entry.expires_at - self._clock.now_ms
                if left_ms <= 0:
                    self._outcome.expired += 1
                    continue
                ttl = timedelta(milliseconds=left_ms)
            self._numbers.append(number)
            yield Put(entry.key, entry.value, entry.metadata, ttl)

    def _export_lines(self, records: Iterator[Record]) -> Iterator[_Placed]:
        """The lines of entries and namespaces; headers and closing lines are held against what is between them."""
        header: Header | None = None
        number = entries = passed_over = 0
        for number, _, document, _ in records:
            try:
                line = parse(document)
            except ValueError as error:
                self._passed_over += 1
                self._note(Problem(number, str(error)))
                continue
            if isinstance(line, EntryLine | NamespaceLine | IndexLine):
                entries += isinstance(line, EntryLine)
                placed = _Placed(number, self._namespace_of(line, header), line)
                if self._is_possible(placed):
                    yield placed
            elif isinstance(line, Header):
                if header is not None:
                    self._note(Problem(number, "the export before this line was cut off"))
                self._check_header(line)
                header, entries, passed_over = line, 0, self._passed_over
            else:
                found = entries + self._passed_over - passed_over
                if header is not None and found != line.entries:
                    self._note(Problem(number, f"the export had {entry_count(line.entries)}, found here: {found:,}"))
                header = None
        if header is not None:
            self._note(Problem(number + 1, "the closing line is missing: the export was cut off"))

    def _is_possible(self, placed: _Placed) -> bool:
        """Whether the line's namespace can be one. One that the user named is no fault of the line."""
        if placed.namespace is not None and self._options.namespace is None:
            try:
                check_namespace(placed.namespace)
            except InvalidNamespaceError as error:
                self._note(Problem(placed.number, str(error)))
                return False
        return True

    def _check_header(self, header: Header) -> None:
        if header.version != VERSION:
            raise UsageError(f"an export of form {header.version}: this version reads form {VERSION}")
        if header.namespace is None and self._options.namespace is not None:
            raise UsageError("an export of all namespaces: import it without --namespace")

    def _namespace_of(self, line: EntryLine | NamespaceLine | IndexLine, header: Header | None) -> str | None:
        wanted = self._options.namespace
        if isinstance(line, IndexLine) and line.is_everywhere:
            return None
        own = line.name if isinstance(line, NamespaceLine) else line.namespace
        if own is None:
            own = DEFAULT_NAMESPACE if header is None or header.namespace is None else header.namespace
        elif wanted is not None and wanted != own and isinstance(line, EntryLine):
            raise UsageError("an export of all namespaces: import it without --namespace")
        return own if wanted is None else wanted

    def _load(self, namespace: str, items: Iterator[Put] | Iterator[tuple[str, object]]) -> None:
        """Load the items, and tell what became of them."""
        outcome = self._outcome
        loaded_before = outcome.loaded
        entries_before = self._count(namespace)
        self._numbers.clear()
        self._settled = 0

        def settle(report: LoadReport) -> None:
            outcome.loaded = loaded_before + report.loaded
            for problem in report.problems:
                self._note(Problem(self._numbers[problem.index - self._settled], str(problem.error)))
            while self._settled < report.loaded + report.failed:
                self._numbers.popleft()
                self._settled += 1
            self._clock.advance()
            self.report_problems()
            self._progress.show(outcome.loaded)

        try:
            tried = self._tried(namespace, items, settle)
            if tried is None:
                return
            self.open().load(
                tried,
                namespace=namespace,
                batch_size=self._options.batch_size,
                on_error=self._options.on_error,
                progress=settle,
            )
        except BatchError as error:
            # What an item is in itself is known when it is drawn; that it is not unique, when its batch is written.
            refused = None if error.report is None else error.report.problems[-1]
            number = self._numbers[-1 if refused is None else refused.index - self._settled]
            raise _StopError(Problem(number, str(error if refused is None else refused.error))) from error
        finally:
            if namespace not in outcome.namespaces and outcome.loaded > loaded_before:
                outcome.namespaces.append(namespace)
        new = self._count(namespace) - entries_before
        outcome.replaced += max(0, outcome.loaded - loaded_before - new)

    def _tried(
        self,
        namespace: str,
        items: Iterator[Put] | Iterator[tuple[str, object]],
        settle: Callable[[LoadReport], None],
    ) -> Iterator[Put | tuple[str, object]] | None:
        """The items. Before a store is made for them, the first batch is loaded into memory: a bad item makes none.

        None where bad ones were all, and were to be left out.
        """
        if self._opened is not None:
            return items
        if self._options.on_error == "skip":
            return self._behind_bad_ones(namespace, items, settle)
        first: deque[Put | tuple[str, object]] = deque(islice(items, self._options.batch_size))
        with open_storage("memory:") as trial:
            trial.load(first, namespace=namespace, batch_size=self._options.batch_size)
        # Let go of one by one, so that no batch is held longer than it has to be.
        return chain((first.popleft() for _ in range(len(first))), items)

    def _behind_bad_ones(
        self,
        namespace: str,
        items: Iterator[Put] | Iterator[tuple[str, object]],
        settle: Callable[[LoadReport], None],
    ) -> Iterator[Put | tuple[str, object]] | None:
        """The items from the first good one on; those before it are done with, as the bad ones that they are."""
        good: list[Put | tuple[str, object]] = []
        with open_storage("memory:") as trial, open_storage("memory:") as nothing:

            def bad_ones() -> Iterator[Put | tuple[str, object]]:
                for item in items:
                    if trial.load([item], namespace=namespace, on_error="skip").loaded:
                        good.append(item)
                        return
                    yield item

            nothing.load(
                bad_ones(),
                namespace=namespace,
                batch_size=self._options.batch_size,
                on_error="skip",
                progress=settle,
            )
        self._settled = 0  # the next report counts from the first good one
        if self._outcome.failed and not good:
            return None
        return cast("Iterator[Put | tuple[str, object]]", chain(good, items))

    def _note(self, problem: Problem) -> None:
        """Remember a bad line, or stop at it."""
        if self._options.on_error == "stop":
            raise _StopError(problem)
        self._outcome.failed += 1
        self._problems.append(problem)
        if len(self._problems) >= _MOST_UNREPORTED:
            self.report_problems()


def _field_as_key(record: Record, name: str) -> str:
    """The key that a document names. Raises ValueError saying why it names none."""
    if record.texts is not None:
        if name not in record.texts:
            raise UsageError(f"the header row names no column {name!r}")
        return record.texts[name]
    value: Any = record.value
    if type(value) is not dict:
        raise ValueError(f"not an object, so without a field {name!r}")
    document = cast("dict[str, object]", value)
    if name not in document:
        raise ValueError(f"the field {name!r} is missing")
    key = document[name]
    if type(key) is int:
        return str(key)
    if type(key) is not str:
        kind = "null" if key is None else type(key).__name__
        raise ValueError(f"the field {name!r} is {kind}: a key is a text or a whole number")
    return key
