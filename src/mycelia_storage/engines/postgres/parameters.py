"""The settings in a PostgreSQL target: taken apart by libpq, and what is wrong with them named.

Called by the engine. What is raised shows names of settings only, and those only where they cannot be a piece of a
password that came apart.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final, NoReturn

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from mycelia_storage.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SCHEME: Final = re.compile(r"postgres(ql)?://", re.IGNORECASE)
# A name and a value, bare or between quotes; with libpq's backslashes.
_SETTING: Final = re.compile(r"\s*([^\s=]+)\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:[^\s\\]|\\.)*)")
_NAME: Final = re.compile(r"\w{1,40}", re.ASCII)


def parameters_of(given: str) -> dict[str, Any]:
    """The settings of a URL or connection string. Raises ConfigError, which shows no value of them."""
    begun = _SCHEME.match(given)
    if begun is not None:  # libpq knows it in lower case only
        given = given[: begun.end()].lower() + given[begun.end() :]
    try:
        parameters: dict[str, Any] = conninfo_to_dict(given)
    except psycopg.ProgrammingError:
        _refuse(given)
    _refuse_torn(given, parameters)
    return parameters


def _refuse(given: str) -> NoReturn:
    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    # (`ssl=true` is JDBC's, and taken in URLs.)
    for name in _names_that_can_be_shown(given):
        if name not in known and name != "ssl":
            close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
            hint = f": did you mean {close[0]!r}?" if close else ", as libpq has it, by which the server is reached"
            raise ConfigError(f"target: there is no setting {name!r}{hint}") from None
    raise ConfigError(
        "target: it is no PostgreSQL URL or connection string: write 'postgresql://user@host:5432/database', and "
        "special characters in it as %XX"
    ) from None


def _names_that_can_be_shown(given: str) -> Iterator[str]:
    """The names of settings up to the first secret, behind which a name may be a piece of it that came apart."""
    if _SCHEME.match(given):
        query = given.partition("?")[2]
        if "@" in query:  # the query may have begun inside a password
            return
        names = [part.partition("=")[0] for part in query.split("&") if part]
    else:
        names = _SETTING.findall(given)
    for name in names:
        if not _NAME.fullmatch(name):
            return
        yield name
        if "pass" in name.lower() or "secret" in name.lower() or difflib.get_close_matches(name, ["password"]):
            return


def _refuse_torn(given: str, parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError where a URL came apart at a character of its password, part of which would be shown."""
    ports = str(parameters.get("port") or "").split(",")
    parts = "".join(str(parameters.get(name) or "") for name in ("host", "hostaddr", "dbname", "user"))
    if given.startswith(("postgresql:", "postgres:")) and (
        "@" in parts or not all(port.isdigit() for port in ports if port)
    ):
        raise ConfigError(
            "target: the URL comes apart in the wrong places: in a user, password or name write '/', '@', ':', '?' and "
            "'#' as %2F, %40, %3A, %3F and %23"
        )
