"""`Auto`: the primitives where each call is a transaction of its own.

Called by the verbs of a store through the engine's `auto`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import apsw

from mycelia_storage.engines.engine import Member
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS, extended_code
from mycelia_storage.engines.sqlite.session import (
    DELETE_IF_SIMPLE,
    HAS,
    MENDABLE,
    PUT_IF_SIMPLE,
    VALUE,
    Statements,
    is_there,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.engines.engine import Primitives, PutRow
    from mycelia_storage.engines.sqlite.engine import SQLiteEngine


class Auto(Statements):
    """Each call is a transaction of its own, and the calls that are made most go the shortest way.

    For one statement SQLite's own transaction around it is enough, and saves BEGIN and COMMIT. Where another process
    has the file, it goes the long way, which waits for the file first and reads the time after that.
    """

    def __init__(self, engine: SQLiteEngine) -> None:
        super().__init__(engine)
        self._engine = engine

    def value(self, namespace: str, key: str) -> tuple[str, int | None] | None:
        readers = self._engine.readers
        cursor = readers.lend()
        try:
            found: tuple[str, int | None] | None = cursor.execute(VALUE, (namespace, key)).get
        except BaseException as error:
            readers.discard(cursor)
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise
        readers.give_back(cursor)
        return found

    def has(self, namespace: str, key: str, now: int) -> bool:
        readers = self._engine.readers
        cursor = readers.lend()
        try:
            rows = cursor.execute(HAS, (namespace, key, now // 1000)).fetchall()
        except BaseException as error:
            readers.discard(cursor)
            if isinstance(error, DRIVER_ERRORS):
                raise self._engine.failure(error) from error
            raise
        readers.give_back(cursor)
        return is_there(rows, now)

    def put(self, namespace: str, rows: Sequence[PutRow], now: int) -> list[int]:
        if len(rows) != 1:
            return super().put(namespace, rows, now)
        writer = self._engine.writer
        if not writer.line.try_to_pass():
            return self._put_with_others(namespace, rows)
        writer.get_ready(0.0)
        try:
            now = writer.time(now)
            key, value, metadata, expires_at = rows[0]
            bindings = (namespace, key, value, metadata, expires_at, now, now // 1000)
            writer.cursor.execute(PUT_IF_SIMPLE, bindings)
            is_done = writer.connection.changes() > 0
        except apsw.ConstraintError as error:
            if extended_code(error) not in MENDABLE:
                raise writer.failure(error) from error
            is_done = False
        except apsw.BusyError:
            writer.roll_back()
            is_done = False
        except DRIVER_ERRORS as error:
            raise writer.failure(error) from error
        finally:
            writer.unlock()
        if not is_done:
            return super().put(namespace, rows, now)
        writer.after_write()
        return [now]

    def delete(self, namespace: str, keys: Sequence[str], now: int) -> int:
        if len(keys) != 1:
            return super().delete(namespace, keys, now)
        writer = self._engine.writer
        if not writer.line.try_to_pass():
            return self._delete_with_others(namespace, keys)
        writer.get_ready(0.0)
        removed: list[Any] = []
        try:
            bindings = (namespace, keys[0], writer.time(now))
            removed = writer.cursor.execute(DELETE_IF_SIMPLE, bindings).fetchall()
            if not removed and not writer.cursor.execute(HAS, bindings).fetchall():
                return 0
        except apsw.BusyError:
            writer.roll_back()
        except DRIVER_ERRORS as error:
            raise writer.failure(error) from error
        finally:
            writer.unlock()
        if not removed:
            return super().delete(namespace, keys, now)
        expires_at: int | None = removed[0][1]
        return 1 if expires_at is None or expires_at > now // 1000 else 0

    # Methods of their own, since the variables of a lambda in `put` would cost every put.

    def _put_with_others(self, namespace: str, rows: Sequence[PutRow]) -> list[int]:
        return self._share(lambda shared, then: shared.put(namespace, rows, then))  # type: ignore[no-any-return]

    def _delete_with_others(self, namespace: str, keys: Sequence[str]) -> int:
        return self._share(lambda shared, then: shared.delete(namespace, keys, then))  # type: ignore[no-any-return]

    def _share(self, step: Callable[[Primitives, int], Any]) -> Any:
        """Others write just now: stand in line with them, for a commit in common."""
        member = Member(step)
        self._engine.share((member,))
        return member.outcome()
