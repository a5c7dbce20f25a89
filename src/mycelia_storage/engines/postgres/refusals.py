"""Why a server does not let somebody in: the SQLSTATE of its refusal, which the driver does not tell.

Called by `connections.py` after an attempt to connect that failed without a code. What a server answers before a
connection is there, libpq keeps as a text, in the server's language. So the attempt is made once more, with libpq's
protocol of what is said, in which the code stands. It is written to memory, since a password may stand there too.
"""

from __future__ import annotations

import os
import re
import select
import time
from typing import Final

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

# The severity comes first, in the server's language, and in newer servers once more in English.
_REFUSED: Final = re.compile(rb'\tErrorResponse\t S "[^"]*" (?:V "[^"]*" )?C "([0-9A-Z]{5})"')
_SECONDS: Final = 10
_PASSING: Final = ("08", "53", "57", "58", "XX")


def refusal(conninfo: str) -> str:
    """The SQLSTATE of the refusal, "" where it cannot be known. Of several servers' one that may pass by itself."""
    try:
        told = _told(conninfo)
    except (psycopg.Error, OSError, AttributeError):  # libpq is too old, or the system is not Linux
        return ""
    states = [state.decode() for state in _REFUSED.findall(told)]
    return next(filter(is_passing, states), states[-1] if states else "")


def is_passing(state: str) -> bool:
    """Whether the same attempt may succeed later: there were too many connections, or the server was starting."""
    return state.startswith(_PASSING)


def _told(conninfo: str) -> bytes:
    with open(os.memfd_create("mycelia-refusal"), "rb") as file:
        connection = pq.PGconn.connect_start(conninfo.encode())
        try:
            connection.trace(file.fileno())
            try:
                _wait(connection, time.monotonic() + float(conninfo_to_dict(conninfo)["connect_timeout"] or _SECONDS))
            finally:
                connection.untrace()  # or what it has not written yet would be written to another file some day
        finally:
            connection.finish()
        file.seek(0)
        return file.read()


def _wait(connection: pq.abc.PGconn, last: float) -> None:
    """Until it is connected, or refused, or the time is over."""
    while (left := last - time.monotonic()) > 0:
        state = connection.connect_poll()
        if state == pq.PollingStatus.READING:
            select.select([connection.socket], [], [], left)
        elif state == pq.PollingStatus.WRITING:
            select.select([], [connection.socket], [], left)
        else:
            return
