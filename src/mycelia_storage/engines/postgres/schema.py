"""The tables in PostgreSQL, and how they come to be: numbered steps, each in one transaction.

Called by the engine when it is opened, and for `migrate`.

- `entries`: `value` and `metadata` are the exact JSON texts, `doc` and `meta` their query forms, which the client
  writes in the same statement. Times are milliseconds since 1970.
- `namespaces`: those that are registered.
- `indexes`: the definitions of created indexes, whose SQL names are made from theirs.
- `state`: one row; the schema's version, and the greatest version of an entry that was removed while it lay ahead of
  the clock.

The numbers are those of the files: version 1 was the original adapter's, and has never been in a PostgreSQL database.

Several processes may open a new store at once. Each of them makes the tables in a transaction; PostgreSQL lets one of
them be the first, and tells the others so by an error about a name that is taken: they look again. No advisory locks,
which databases that speak PostgreSQL's protocol may not have.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import psycopg

from mycelia_storage.engines.postgres.failures import cause_of, state_of, to_storage_error
from mycelia_storage.errors import ConfigError, NotAStorageFileError, SchemaVersionError, StorageReadOnlyError
from mycelia_storage.keys import DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from mycelia_storage.engines.postgres.connections import Connection

SCHEMA_VERSION: Final = 2

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
# A server that crashes must not leave an open store without tables, however it is configured.
KEEP: Final = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
# By the catalogue, since what is not there cannot be asked.
TABLES: Final = """
SELECT c.relname::text FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND c.relname IN ('entries', 'namespaces', 'indexes', 'state')"""
ENCODING: Final = (
    "SELECT pg_encoding_to_char(encoding)::text FROM pg_catalog.pg_database WHERE datname = current_database()"
)
HAS_SCHEMA: Final = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1"
COLUMNS_OF_STATE: Final = """
SELECT a.attname::text FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = 'state' AND a.attnum > 0 AND NOT a.attisdropped"""
VERSION: Final = "SELECT schema_version FROM {s}.state"

CREATE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {s}"
CREATE: Final = (
    """
CREATE TABLE {s}.state (
  id integer PRIMARY KEY CHECK (id = 1), schema_version integer NOT NULL, floor bigint NOT NULL)""",
    "INSERT INTO {s}.state VALUES (1, {version}, 0)",
    """
CREATE TABLE {s}.namespaces (
  name text COLLATE "C" NOT NULL PRIMARY KEY, metadata text, created_at bigint NOT NULL)""",
    """
CREATE TABLE {s}.entries (
  namespace text COLLATE "C" NOT NULL,
  key text COLLATE "C" NOT NULL,
  version bigint NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  expires_at bigint,
  metadata text,
  value text NOT NULL,
  doc jsonb NOT NULL,
  meta jsonb,
  PRIMARY KEY (namespace, key))""",
    "CREATE INDEX entries_expiry ON {s}.entries (expires_at) WHERE expires_at IS NOT NULL",
    """
CREATE TABLE {s}.indexes (
  name text COLLATE "C" NOT NULL PRIMARY KEY, namespace text COLLATE "C", fields text NOT NULL,
  is_unique boolean NOT NULL, created_at bigint NOT NULL)""",
)
REGISTER_DEFAULT: Final = "INSERT INTO {s}.namespaces VALUES ($1, NULL, $2)"

_OURS: Final = frozenset({"entries", "namespaces", "indexes", "state"})
# What somebody who was first leaves behind: a name that is taken, by an error of this kind.
_TAKEN: Final = ("23505", "42P06", "42P07", "40001", "40P01", "XX000")
_ATTEMPTS: Final = 20


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as an SQL literal, whatever the server makes of backslashes."""
    escaped = text.replace("'", "''")
    return f"E'{escaped}'".replace("\\", "\\\\") if "\\" in text else f"'{escaped}'"


def make_ready(connection: Connection, schema: str, where: str, now_ms: int, *, migrate: bool, read_only: bool) -> None:
    """Make the tables where there are none, and check those that are there.

    Raises NotAStorageFileError, SchemaVersionError, ConfigError, StorageReadOnlyError.
    """
    (encoding,) = connection.raw.execute(ENCODING).fetchone() or ("UTF8",)
    if encoding != "UTF8":
        raise ConfigError(f"{where}: the database has the encoding {encoding}, and UTF8 is needed")
    for attempt in range(_ATTEMPTS):
        if _is_there(connection, schema, where):
            return
        if read_only:
            raise StorageReadOnlyError(f"{where}: there is no store, and read_only=True makes none")
        if not migrate:
            raise SchemaVersionError(f"{where}: there is no store yet, and opening it without migrating makes none")
        try:
            _create(connection, schema, now_ms)
        except psycopg.Error as error:
            connection.raw.execute(ROLLBACK)
            if state_of(error) not in _TAKEN or attempt == _ATTEMPTS - 1:
                raise to_storage_error(error, where) from cause_of(error)
            time.sleep(0.01 * (attempt + 1))  # until the other one has committed; there is nothing to wait on


def _is_there(connection: Connection, schema: str, where: str) -> bool:
    tables = {name for (name,) in connection.raw.execute(TABLES, (schema,)).fetchall()}
    if not tables:
        return False
    columns = {name for (name,) in connection.raw.execute(COLUMNS_OF_STATE, (schema,)).fetchall()}
    if tables != _OURS or not columns >= {"id", "schema_version", "floor"}:
        raise NotAStorageFileError(
            f"{where}: the schema {schema!r} has tables of somebody else ({', '.join(sorted(tables))}): name another"
        )
    found = connection.raw.execute(VERSION.format(s=quoted(schema))).fetchall()
    if len(found) != 1:
        raise NotAStorageFileError(
            f"{where}: the table 'state' in the schema {schema!r} has {len(found)} rows, not one"
        )
    version = found[0][0]
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{where}: the store has schema version {version}, and this library knows {SCHEMA_VERSION}: update it"
        )
    if version < SCHEMA_VERSION:
        raise SchemaVersionError(f"{where}: the store has schema version {version}, which never was one here")
    return True


def _create(connection: Connection, schema: str, now_ms: int) -> None:
    name, cursor = quoted(schema), connection.raw
    cursor.execute(BEGIN)
    cursor.execute(KEEP)
    # Who may use a schema that is there, but not make one, is not asked for more.
    if cursor.execute(HAS_SCHEMA, (schema,)).fetchone() is None:
        cursor.execute(CREATE_SCHEMA.format(s=name))
    for statement in CREATE:
        cursor.execute(statement.format(s=name, version=SCHEMA_VERSION))
    cursor.execute(REGISTER_DEFAULT.format(s=name), (DEFAULT_NAMESPACE, now_ms))
    cursor.execute(COMMIT)
