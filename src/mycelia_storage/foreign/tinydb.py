"""Files of TinyDB: one JSON object of tables, each an object of documents by their number.

Called by `importing`. `{"_default": {"1": {…}, "2": {…}}, "people": {…}}`: a table becomes a namespace, and the number
of a document its key.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from mycelia_storage.engines.sqlite.failures import of_system
from mycelia_storage.errors import ConfigError, NotAStorageFileError, StorageCorruptError
from mycelia_storage.foreign.found import Found, Item, Refused, Source
from mycelia_storage.foreign.plain_files import PlainFile, steady
from mycelia_storage.json_texts import JsonWindow, UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_TABLE: Final = "_default"
TWINS: Final = (
    "an entry before it has the same key: the file has the number twice in one table, or in the tables '_default' and"
    " 'default', which both go to the namespace 'default': import each table by itself, into a namespace of its own"
)


@contextlib.contextmanager
def opened(path: str, table: str | None, limit: int, patience: float) -> Iterator[Source]:
    """The documents of one table, or of all of them where none is named."""
    del limit, patience  # nobody locks such a file; a document is measured where it is written
    with contextlib.ExitStack() as stack:
        file = PlainFile(path, stack)
        # TinyDB itself has all of a file in memory: its keys alone may be remembered.
        source = Source(iter(()), twins=TWINS)
        source.items = steady(_tables(file, path, table, source.notes), file)
        yield source


def _tables(file: PlainFile, path: str, wanted: str | None, notes: list[str]) -> Iterator[Item]:
    text = JsonWindow(file.stream)
    is_new = file.size == 0  # TinyDB makes such a file, and writes to it when there is something to write
    has_met = False
    try:
        if not is_new and not text.accept("{"):
            raise NotAStorageFileError(f"{path}: no JSON object of tables, as TinyDB makes")
        is_last = is_new or text.accept("}")
        while not is_last:
            name = _name(text)
            is_wanted = wanted is None or name == wanted
            has_met = has_met or name == wanted
            if is_wanted:
                yield from _documents(text, name, None if wanted is not None or name == DEFAULT_TABLE else name)
            else:
                notes.append(f"the table {name!r} is left out")
                for _ in _documents(text, name, None):
                    pass
            is_last = text.expect_next_or("}")
        text.expect("")
    except UnreadableError as error:
        raise StorageCorruptError(f"{path}: behind {error.number:,} documents: {error.reason}") from None
    except OSError as error:
        raise of_system(error, path) from error
    if wanted is not None and not has_met:
        raise ConfigError(f"table: {path} has no table {wanted!r}")


def _name(text: JsonWindow) -> str:
    if text.look() != '"':
        text.fail("a name in double quotes is missing")
    name = str(text.value())
    text.expect(":")
    return name


def _documents(text: JsonWindow, table: str, namespace: str | None) -> Iterator[Item]:
    if text.look() != "{":
        text.value()
        yield Refused(f"the table {table!r}", "a table is an object of documents, and this is none", namespace)
        return
    text.expect("{")
    is_last = text.accept("}")
    while not is_last:
        text.next_item()
        key = _name(text)
        value = text.value()
        if text.is_spoiled:
            yield Refused(key, "not UTF-8", namespace)
        else:
            yield Found(key, value, namespace)
        is_last = text.expect_next_or("}")
