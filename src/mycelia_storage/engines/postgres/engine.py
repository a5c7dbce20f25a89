"""The PostgreSQL engine itself: connections, transactions, shared commits and what concerns the store as a whole.

Called by the verbs. The primitives stand in `statements.py`, and how they run in `session.py`.
"""

from __future__ import annotations

import copy
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

import psycopg
import psycopg.conninfo

from mycelia_storage.engines import files, forking
from mycelia_storage.engines.engine import EngineStatus
from mycelia_storage.engines.postgres import checking, restoring, schema
from mycelia_storage.engines.postgres.clock import ServerClock
from mycelia_storage.engines.postgres.connections import Connections
from mycelia_storage.engines.postgres.failures import (
    STANDBY,
    cause_of,
    is_lost,
    is_open_question,
    state_of,
    to_storage_error,
)
from mycelia_storage.engines.postgres.parameters import parameters_of
from mycelia_storage.engines.postgres.session import LEVELS, LOCAL, Auto, PostgresSession
from mycelia_storage.engines.postgres.statements import Wording
from mycelia_storage.errors import (
    ConfigError,
    OutcomeUnknownError,
    StorageClosedError,
    StorageError,
    TransactionConflictError,
    TransactionError,
)
from mycelia_storage.retries import Retries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mycelia_storage.checking import Findings
    from mycelia_storage.engines.engine import Isolation, Member, Progress, Session, Snapshot
    from mycelia_storage.options import Options

SIZE: Final = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')"""
SETTINGS: Final = "SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY($1::text[]) ORDER BY name"
STATE: Final = """
SELECT 'is_standby', CASE WHEN pg_is_in_recovery() THEN 'yes' ELSE 'no' END
UNION ALL SELECT 'encrypted_connection', coalesce((
  SELECT CASE WHEN ssl THEN 'yes' ELSE 'no' END FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()), 'unknown')
UNION ALL SELECT 'over_network', CASE WHEN inet_server_addr() IS NULL OR inet_server_addr() << '127.0.0.0/8'
  OR inet_server_addr() = '::1' THEN 'no' ELSE 'yes' END
UNION ALL SELECT 'server_started', extract(epoch FROM pg_postmaster_start_time())::text
UNION ALL SELECT 'database_oid', (SELECT oid::text FROM pg_catalog.pg_database WHERE datname = current_database())"""
_SETTINGS_SHOWN: Final = (
    "autovacuum", "fsync", "full_page_writes", "max_connections", "server_version", "server_version_num",
    "synchronous_commit", "synchronous_standby_names",
)  # fmt: skip
HOLDS_EXPIRING: Final = "SELECT 1 FROM {s}.entries WHERE expires_at IS NOT NULL LIMIT 1"
ANALYZE: Final = "ANALYZE {s}.entries"

# A verb of several statements is tried so often, and not begun again after so many seconds.
_ATTEMPTS: Final = 200
_DEADLINE: Final = 30.0
# Of a statement alone, too: at a lower level one that has waited for another transaction goes on with what it had read
# before (the floor, the namespace), or with rows that it then finds changed. It costs less than a tenth.
_ISOLATION: Final = "-c default_transaction_isolation=serializable"
# What runs when the store is closed has so long to end.
_CLOSING_SECONDS: Final = 2.0
_GRACE_SECONDS: Final = 0.25
_APPLICATION: Final = "mycelia-storage"

# A server that is gone without a word is noticed within a minute, and not after TCP's two hours: a caller who waits for
# an answer would wait as long. (Milliseconds for the last, else seconds; without meaning on a socket of this machine.)
_NOTICE: Final = {
    "keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3", "tcp_user_timeout": "60000",
}  # fmt: skip

# What came along with a fork, and is never to be collected here: it would say good bye to the server for the parent.
_inherited: Final[list[object]] = []


class EngineRetries(Retries):
    """Retries that wait by themselves."""

    def wait(self) -> bool:
        """Wait as long as is good; False where there is no further attempt."""
        pause = self.pause()
        if pause is not None:
            time.sleep(pause)
        return pause is not None


class PostgresEngine:
    """The rows of one store in a schema of a PostgreSQL database."""

    backend = "postgresql"
    # Every answer comes over a network.
    reads_at_once = False
    has_write_lock = False
    share_at_once = None

    def __init__(self, options: Options) -> None:
        self._options = options
        self.is_read_only: bool = options.read_only
        settings = _settings(options)
        self._parameters = psycopg.conninfo.conninfo_to_dict(settings)
        self.where: str = _shown(self._parameters)
        self.texts: Wording = Wording(options.schema, is_prepared=options.prepare_threshold is not None)
        self.locking_texts: Wording = self.texts.locking()
        server_clock = None if options.clock_is_given else ServerClock()
        self.clock: Callable[[], float] = server_clock or options.clock
        # Behind a pooler the settings of a connection are not this store's own: they are given to each transaction.
        self.local_settings: str = "" if options.prepare_threshold is not None else _local_settings(options)
        self.connections: Connections = Connections(
            settings,
            self.where,
            server_clock,
            least=options.pool_min,
            most=options.pool_max,
            patience=options.busy_timeout,
            prepare_threshold=options.prepare_threshold,
            debug=options.debug,
        )
        self._sessions: weakref.WeakSet[PostgresSession] = weakref.WeakSet()
        self._is_closed = False
        self.auto: Auto = Auto(self)
        self._make_ready(server_clock)
        self.connections.open()
        forking.register(self)

    def _make_ready(self, server_clock: ServerClock | None) -> None:
        """On a connection of its own, so that it is known at once what is wrong with a target."""
        connection = self.connections.extra(patience=0)
        try:
            if server_clock is not None:
                server_clock.ask(connection.raw)
            schema.make_ready(
                connection,
                self._options.schema,
                self.where,
                int(self.clock() * 1000),
                migrate=self._options.migrate,
                read_only=self.is_read_only,
            )
        except psycopg.Error as error:
            raise self.failure(error) from cause_of(error)
        finally:
            connection.close()

    # ---- transactions

    def begin(
        self,
        *,
        read_only: bool = False,
        isolation: Isolation | None = None,
        durable: bool = False,
        wait: float | None = None,
    ) -> Session:
        """A transaction; one that writes is serializable unless less was asked for, and waits for nobody at its start.

        `wait` bounds the wait for a connection. One that turns out to be lost, or to lead to a standby, is replaced.
        """
        level = LEVELS[isolation or ("repeatable_read" if read_only or self.is_read_only else "serializable")]
        return self.begin_session(level, read_only=read_only, durable=durable, is_callers=True, wait=wait)

    def begin_session(
        self,
        level: str = LEVELS["serializable"],
        *,
        read_only: bool = False,
        durable: bool = False,
        alone: bool = False,
        is_callers: bool = False,
        wait: float | None = None,
    ) -> PostgresSession:
        """The same for the engine itself, which knows more of it; `alone`: once nobody else writes."""
        left = self.connections.most
        while True:
            connection = self.connections.lend(wait)
            try:
                session = PostgresSession(
                    self, connection, read_only=read_only or self.is_read_only, is_callers=is_callers
                )
            except BaseException:  # Ctrl-C
                self.connections.give_back(connection, lost=True)
                raise
            try:
                session.start(level, durable=durable, alone=alone)
            except psycopg.Error as error:
                can_go_on = is_lost(error) or state_of(error) == STANDBY
                session.end(lost=can_go_on)
                if can_go_on and left:
                    left -= 1
                    continue
                raise self.failure(error) from cause_of(error)
            except BaseException:
                session.end(lost=True)
                raise
            return self._noted(session)

    def _noted(self, session: PostgresSession) -> PostgresSession:
        """For `close`, which either sees it or has been before."""
        self._sessions.add(session)
        if self._is_closed:
            session.end()
            raise StorageClosedError.of(self.where)
        return session

    def snapshot(self) -> Snapshot:
        """A state to read from, on a connection besides those of the pool."""
        return self._snapshot()

    def _snapshot(self) -> PostgresSession:
        session = PostgresSession(self, self.connections.extra(), read_only=True, is_extra=True)
        try:
            session.start(LEVELS["snapshot"], durable=False)
        except psycopg.Error as error:
            session.rollback()
            raise self.failure(error) from cause_of(error)
        except BaseException:
            session.rollback()
            raise
        return self._noted(session)

    def share(self, members: Sequence[Member], wait: float | None = None) -> None:
        """All in one transaction; where one fails after it wrote, or somebody comes between, each in its own."""
        if len(members) > 1 and self._shared(members, wait):
            return
        for member in members:
            if not member.is_done:
                self._run_alone(member, wait)

    def _shared(self, members: Sequence[Member], wait: float | None) -> bool:
        """Whether all members are done with."""
        durable = any(member.durable for member in members)
        try:
            session = self.begin_session(durable=durable, wait=wait)
        except StorageError as error:
            # One wait is enough: each of them would wait as long, one after the other.
            for member in members:
                member.done(error=copy.copy(error))
            return True
        results: list[tuple[Member, Any]] = []
        failed: list[tuple[Member, BaseException]] = []
        try:
            for member in members:
                before = session.writes
                try:
                    results.append((member, member.step(session, self.now())))
                except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
                    if session.writes != before or not session.is_open():
                        return False
                    failed.append((member, error))
            session.commit()
        except OutcomeUnknownError as error:
            failed += [(member, OutcomeUnknownError(str(error))) for member, _ in results]
            results = []
        except StorageError:
            return False
        finally:
            session.rollback()
        for member, result in results:
            member.done(result)
        for member, failure in failed:
            member.done(error=failure)
        return True

    def _run_alone(self, member: Member, wait: float | None) -> None:
        retries = self.retries()
        while True:
            try:
                session = self.begin_session(durable=member.durable, wait=wait)
                try:
                    result = member.step(session, self.now())
                    session.commit()
                finally:
                    session.rollback()
            except TransactionConflictError as error:
                if retries.wait():
                    continue
                member.done(error=error)
            except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
                member.done(error=error)
            else:
                member.done(result)
            return

    def retries(self) -> EngineRetries:
        """For a verb of the library's own."""
        return EngineRetries(_ATTEMPTS, _DEADLINE)

    def ended(self, session: PostgresSession) -> None:
        """A session has ended."""
        self._sessions.discard(session)

    def ended_error(self) -> StorageError:
        """Why a session takes no more calls."""
        return StorageClosedError.of(self.where) if self._is_closed else TransactionError("the transaction has ended")

    def failure(self, error: psycopg.Error, *, committing: bool = False) -> StorageError:
        """The library's error for one of the driver's; `committing` as in `to_storage_error`."""
        if self._is_closed and not (committing and is_open_question(error)):
            return StorageClosedError.of(self.where)
        return to_storage_error(error, self.where, committing=committing)

    def until(self) -> float | None:
        """When a commit that begins now has taken too long, by the monotonic clock. (The server times statements only.)

        A little after the server's own time is over, which says of a statement that it has not happened.
        """
        seconds = self._options.statement_timeout
        return None if seconds is None else time.monotonic() + seconds + _GRACE_SECONDS

    def now(self) -> int:
        """Microseconds since 1970."""
        return round(self.clock() * 1_000_000)

    # ---- the store

    def holds_expiring(self) -> bool:
        """Whether something expires."""
        text = HOLDS_EXPIRING.format(s=self.texts.schema)
        return self._read(lambda cursor: cursor.execute(text).fetchone()) is not None

    def status(self) -> EngineStatus:
        """Where it is, how big, and what its connections do. Never with a password."""
        (size,) = self._read(lambda cursor: cursor.execute(SIZE, (self._options.schema,)).fetchone())
        details = {
            "schema": self._options.schema,
            **self._read(lambda cursor: dict(cursor.execute(SETTINGS, (list(_SETTINGS_SHOWN),)).fetchall())),
            **self._read(lambda cursor: dict(cursor.execute(STATE).fetchall())),
            "pool_max": self.connections.most,
            "connections_in_use": self.connections.lent(),
        }
        return EngineStatus(self.where, schema.SCHEMA_VERSION, size, details)

    def _read(self, step: Callable[[Any], Any]) -> Any:
        return self.auto.read(step)

    def check(self, findings: Findings, now: int) -> None:
        """Look at every row by the rules, at its query form, and at the indexes, in one state."""
        session = self._snapshot()
        try:
            checking.check(session, self.texts, self._options.schema, findings, now)
        finally:
            session.rollback()

    def backup(self, path: str, *, overwrite: bool, progress: Progress | None) -> None:
        """Write a SQLite file of one state of the store."""
        session, now = self._snapshot(), self.now()
        try:
            contents = restoring.contents_of(session, now)
            files.write(contents, path, self._options, now // 1000, overwrite=overwrite, progress=progress)
        finally:
            session.rollback()

    def restore(self, path: str, *, progress: Progress | None) -> None:
        """Put what such a file holds in place of everything, in one transaction."""

        def begin() -> PostgresSession:
            return self.begin_session(durable=True, alone=True)

        restoring.restore(begin, self.texts, path, self._options, self.now(), progress)

    def optimize(self) -> None:
        """Have the statistics made anew; the server's autovacuum does the rest."""
        text = ANALYZE.format(s=self.texts.schema)
        # As what reads, since its warnings are not those of a commit.
        self.auto.read(lambda cursor: cursor.execute(text))

    def migrate(self, to: int | None) -> None:
        """There is one version so far, which every store has since it was opened."""
        if self._is_closed:
            raise StorageClosedError.of(self.where)
        if to not in (None, schema.SCHEMA_VERSION):
            raise ConfigError(f"to: a store in PostgreSQL has schema version {schema.SCHEMA_VERSION}, and no other")

    # ---- forks, and the end

    def before_fork(self) -> bool:
        """There is nothing to close: both sides have the sockets then, and the child never uses them."""
        return True

    def after_fork(self, *, in_child: bool, is_ready: bool) -> None:
        """The child opens connections of its own when it needs them."""
        del is_ready
        if in_child:
            for session in forking.all_of(self._sessions):
                _inherited.extend(session.abandon())
            self._sessions = weakref.WeakSet()
            _inherited.extend(self.connections.forget())

    def close(self) -> None:
        """Roll back what is open, and close every connection. What runs is cancelled, and waited for a moment only."""
        if self._is_closed:
            return
        self._is_closed = True
        sessions = forking.all_of(self._sessions)
        until = time.monotonic() + _CLOSING_SECONDS
        for session in sessions:
            session.stop(until)
        for session in sessions:
            session.end_by(until)
        self.connections.close()


def _settings(options: Options) -> str:
    """The connection string with what the options say. Raises ConfigError, which shows nothing of it."""
    given = "" if options.dsn is None else options.dsn.reveal().decode()
    parameters = parameters_of(given)
    parameters["client_encoding"] = "UTF8"  # whatever the environment says: texts are sent and read as that
    parameters.setdefault("fallback_application_name", _APPLICATION)
    for name, value in _NOTICE.items():
        parameters.setdefault(name, value)
    parameters["connect_timeout"] = max(1, round(options.connect_timeout))
    if "," in str(parameters.get("host", "")) and not options.read_only:
        parameters.setdefault("target_session_attrs", "read-write")
    if options.prepare_threshold is not None:
        milliseconds = _timeouts(options)
        more = " ".join(f"-c {name}={value}" for name, value in milliseconds.items())
        more += f" {_ISOLATION}"
        if options.read_only:
            more += " -c default_transaction_read_only=on"
        parameters["options"] = f"{parameters.get('options') or ''} {more}".strip()
    return psycopg.conninfo.make_conninfo("", **parameters)


def _timeouts(options: Options) -> dict[str, int]:
    timeouts = {"lock_timeout": max(1, round(options.busy_timeout * 1000))}
    if options.statement_timeout is not None:
        timeouts["statement_timeout"] = max(1, round(options.statement_timeout * 1000))
    return timeouts


def _local_settings(options: Options) -> str:
    return "".join(LOCAL.format(name=name, milliseconds=value) for name, value in _timeouts(options).items())


def _shown(parameters: dict[str, Any]) -> str:
    """The target as it may be shown: without passwords and settings."""
    user, name = parameters.get("user"), parameters.get("dbname")
    hosts = str(parameters.get("host") or parameters.get("hostaddr") or "").split(",")
    ports = str(parameters.get("port") or "").split(",")
    places = []
    for number, host in enumerate(hosts):
        port = ports[number] if number < len(ports) else ports[0] if len(ports) == 1 else ""
        places.append(f"{host}:{port}" if port else host)
    return f"postgresql://{f'{user}@' if user else ''}{','.join(places)}/{name or ''}"
