"""What the driver and the server raise, as this library's errors: decided here, by SQLSTATE, and nowhere else.

Called by everything in this package that runs a statement. The driver's error goes along as the cause, without the
lines in which the server shows what somebody wanted to write.
"""

from __future__ import annotations

from typing import Final

import psycopg
import psycopg.errors
import psycopg_pool

from mycelia_storage.engines.limits import is_over, timeout_error
from mycelia_storage.engines.postgres.refusals import is_passing
from mycelia_storage.errors import (
    CapacityError,
    ConfigError,
    OutcomeUnknownError,
    StorageBusyError,
    StorageClosedError,
    StorageCorruptError,
    StorageError,
    StorageFullError,
    StorageIOError,
    StorageReadOnlyError,
    StorageTimeoutError,
    StorageUnavailableError,
    TransactionConflictError,
    TransactionError,
)

# Whoever was there first stays; the other one begins anew. (The primary key's is added in `of_driver`.)
CONFLICTS: Final = ("40001", "40P01", "40003")
STANDBY: Final = "25006"
UNIQUE: Final = "23505"
CANCELLED: Final = "57014"
# The server said that it ends the connection; what it was about to answer nobody will know.
ENDS: Final = ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04")


# The server ended a transaction in which nothing was said for too long: before it heard of a commit.
IDLE_FOR_LONG: Final = "25P03"


class TakenError(Exception):
    """A unique index refused a row: inside of this package only. `constraint` is its name in the database."""

    def __init__(self, constraint: str) -> None:
        super().__init__(constraint)
        self.constraint = constraint


_POOLER: Final = "a prepared statement is not there: behind a pooler open the store with prepare_threshold=None"
_BY_STATE: Final[dict[str, tuple[type[StorageError], str]]] = {
    "08P01": (StorageIOError, "the server did not understand the driver"),
    "22001": (CapacityError, "a text is longer than PostgreSQL can hold"),
    "22003": (CapacityError, "a number is larger than PostgreSQL can hold"),
    "23514": (StorageCorruptError, "a table refuses what the library writes: it is not as it was made"),
    "23502": (StorageCorruptError, "a table refuses what the library writes: it is not as it was made"),
    "25P01": (TransactionError, "the transaction has ended"),
    "25P02": (TransactionError, "an earlier error has ended the transaction"),
    IDLE_FOR_LONG: (TransactionError, "idle_in_transaction_session_timeout is over: the transaction was rolled back"),
    "25P04": (TransactionError, "transaction_timeout is over: the transaction was rolled back"),
    STANDBY: (StorageReadOnlyError, "the server, or this user, may only read"),
    "26000": (ConfigError, _POOLER),
    "42P05": (ConfigError, _POOLER),
    "3D000": (ConfigError, "the server has no database of this name"),
    "3F000": (ConfigError, "the database has no schema of this name"),
    "42501": (StorageReadOnlyError, "the server does not permit it to this user"),
    "42703": (StorageCorruptError, "the tables are not as the library made them"),
    "42883": (StorageCorruptError, "the tables are not as the library made them"),
    "42P01": (StorageCorruptError, "the tables of the store are gone"),
    "53000": (StorageIOError, "the server has not enough resources"),
    "53100": (StorageFullError, "the server has no room left on its disk"),
    "53200": (StorageIOError, "the server has no memory left"),
    "53300": (StorageUnavailableError, "the server takes no more connections"),
    "53400": (CapacityError, "a limit in the server's configuration is reached"),
    "54000": (CapacityError, "an indexed value, or a value as a whole, is longer than PostgreSQL can take"),
    "54001": (CapacityError, "the statement is too complex for PostgreSQL: write a shorter filter"),
    "54011": (CapacityError, "the statement has more columns than PostgreSQL can take"),
    "54023": (CapacityError, "the statement has more arguments than PostgreSQL can take"),
    "55006": (StorageBusyError, "somebody uses what is to be changed"),
    "55P03": (StorageBusyError, "other transactions held a lock for longer than busy_timeout"),
    "58030": (StorageIOError, "the server's disk does not work as it should"),
    "58P01": (StorageIOError, "the server misses one of its files"),
    "XX001": (StorageCorruptError, "the server found damaged data"),
    "XX002": (StorageCorruptError, "the server found a damaged index"),
}
_BY_CLASS: Final[dict[str, tuple[type[StorageError], str]]] = {
    "08": (StorageUnavailableError, "the server cannot be reached, or the connection to it was lost"),
    "28": (ConfigError, "the server refuses the user or the password"),
    "53": (StorageIOError, "the server has not enough resources"),
    "57": (StorageUnavailableError, "the server ended the connection"),
    "58": (StorageIOError, "the server's system does not work as it should"),
}

# What the server says of a document that would be more than a gigabyte while it reads it, by no state of its own.
_TOO_LONG: Final = "invalid memory alloc request size"
_UNKNOWN: Final = "the commit was not confirmed, and may or may not have happened: read before writing again"


def state_of(error: BaseException) -> str:
    """The SQLSTATE of a driver's error, "" where it has none."""
    return getattr(error, "sqlstate", None) or ""


def is_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, or about to be."""
    state = state_of(error)
    if state:
        return state in ENDS or state.startswith("08")
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def is_conflict(error: psycopg.Error) -> bool:
    """Whether the transaction may succeed when it is run again from the start."""
    return state_of(error) in CONFLICTS


def is_open_question(error: psycopg.Error) -> bool:
    """Whether nobody knows if a commit happened that ended with it."""
    state = state_of(error)
    return state == "40003" or (is_lost(error) and state != IDLE_FOR_LONG)


def taken(error: psycopg.Error) -> TakenError | None:
    """Where a created unique index, and not a primary key, refused a row."""
    constraint = error.diag.constraint_name or ""
    return TakenError(constraint) if state_of(error) == UNIQUE and not constraint.endswith("_pkey") else None


def to_storage_error(error: psycopg.Error, where: str, *, committing: bool = False) -> StorageError:
    """The library's error; the caller raises it from `cause_of` the driver's.

    `committing` says that the statement was to end a transaction, so that nobody knows whether it did.
    """
    state = state_of(error)
    if isinstance(error, psycopg_pool.PoolClosed):
        return StorageClosedError.of(where)
    if committing and is_open_question(error):
        return outcome_unknown(where)
    if state in CONFLICTS or (state == UNIQUE and (error.diag.constraint_name or "").endswith("_pkey")):
        return TransactionConflictError(f"{where}: another transaction came between; this one was rolled back")
    if state == CANCELLED:
        return timeout_error() if is_over() else StorageTimeoutError(f"{where}: the server's statement_timeout is over")
    if state == "XX000" and (error.diag.message_primary or "").startswith(_TOO_LONG):
        return CapacityError(f"{where}: a value has more members or elements than PostgreSQL can take in one document")
    found = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if found is not None:
        return found[0](f"{where}: {found[1]}")
    if not state and error.pgconn is not None:  # from an attempt to connect
        # What the server answers to whom it does not let in comes without a code: its text is the cause.
        if error.pgconn.needs_password:
            return ConfigError(f"{where}: the server asks for a password, and none was given")
        return StorageUnavailableError(
            f"{where}: the server cannot be reached, or refuses the user, the password or the database"
        )
    if not state and is_lost(error):
        return StorageUnavailableError(f"{where}: the server cannot be reached, or the connection to it was lost")
    return StorageError(f"{where}: PostgreSQL failed with {type(error).__name__} (SQLSTATE {state or 'unknown'})")


def to_refusal(state: str, where: str) -> StorageError:
    """The library's error for the code with which a server refused to let somebody in."""
    found = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if is_passing(state):
        kind, text = found or (StorageUnavailableError, "the server takes no connections now")
        return kind(f"{where}: {text}")
    text = found[1] if found and found[0] is ConfigError else "the server refuses the user, the database or a setting"
    return ConfigError(f"{where}: {text} (SQLSTATE {state})")


def cause_of(error: psycopg.Error) -> psycopg.Error:
    """The driver's error as it may be shown: without the server's DETAIL, which has keys and values in it."""
    diag = error.diag
    if diag.message_detail is None and diag.context is None:
        return error
    shown = type(error)(diag.message_primary or type(error).__name__)
    return shown.with_traceback(error.__traceback__)


def outcome_unknown(where: str) -> OutcomeUnknownError:
    """For whoever waited for a commit that may or may not have happened."""
    return OutcomeUnknownError(f"{where}: {_UNKNOWN}")
