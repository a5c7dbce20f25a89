"""`SharedCommits`: several writes in one commit, each with its own result or error, after the commit that holds it.

Called by the engine. Who gets the writer's lock does its own work and that of those who wait behind it.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Final

import apsw

from mycelia_storage.engines.limits import is_over
from mycelia_storage.engines.line import Ticket
from mycelia_storage.engines.sqlite.failures import DRIVER_ERRORS
from mycelia_storage.engines.sqlite.shared import SharedStatements, UnfitError
from mycelia_storage.engines.sqlite.trust import begin_to_write
from mycelia_storage.errors import OutcomeUnknownError, StorageBusyError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mycelia_storage.engines.engine import Member
    from mycelia_storage.engines.sqlite.writer import Writer
    from mycelia_storage.options import Options

# So many writes share a commit at most, so that the first of them does not wait for long.
MOST_TOGETHER: Final = 1000
# About some tens of microseconds of work.
_STEPS_IN_A_HURRY: Final = 2000
# What is gathered and does not fit is done twice. After that so many groups are not gathered, since the next ones may
# well be of the same kind: then this costs them a thirtieth, where gathering would save a fifth.
_PLAIN_GROUPS: Final = 32


class SharedCommits:
    """What the writer's connection does for several callers at once."""

    def __init__(self, writer: Writer, options: Options) -> None:
        self._writer = writer
        self._options = options
        self._committing: Sequence[Member] = ()
        self._shared = SharedStatements(writer)
        self._is_unfit = False
        self._plain_groups_left = 0

    def share(self, members: Sequence[Member], wait: float | None) -> None:
        """Run each member, in one commit with what waits behind it; or let somebody else do that."""
        writer = self._writer
        patience = self._options.busy_timeout if wait is None else wait
        if not (writer.line.try_acquire() if is_durable(members) else writer.line.try_to_pass()):
            started = time.monotonic()
            ticket = Ticket(members)
            if not writer.line.wait(ticket, patience):
                _fail(members, writer.busy_error(patience))
                return
            if not ticket.is_owner:
                return
            patience = max(0.0, patience - (time.monotonic() - started))
        try:
            writer.get_ready(patience)
        except StorageError as error:
            _fail(members, error)
            return
        try:
            self._serve([member for member in members if not member.is_done])
        finally:
            writer.unlock()
        writer.after_write()

    def share_at_once(self, members: Sequence[Member]) -> bool:
        """As the protocol says, with a -wal and `synchronous` NORMAL or OFF."""
        writer = self._writer
        if not writer.line.try_acquire():
            return False
        if writer.is_dormant:
            writer.line.release()
            return False
        try:
            writer.get_ready(0.0)
        except StorageError:
            return False
        is_upkeep_due = False
        try:
            pages, done = writer.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
            # Where all is written back, the -wal is begun anew, and at NORMAL its first page has to be on the disk.
            if done < pages:
                self._serve_at_once(members)
                is_upkeep_due = writer.is_upkeep_due(pages - done)
        except DRIVER_ERRORS:
            pass  # whoever may wait finds out why
        finally:
            writer.unlock(at_once=True)
        writer.after_write(at_once=True)
        return is_upkeep_due

    def _serve_at_once(self, members: Sequence[Member]) -> None:
        """Nothing is done where it takes too long, or fails in a way that others may mend."""
        writer = self._writer
        writer.synchronize(durable=False)
        writer.connection.set_progress_handler(is_over, _STEPS_IN_A_HURRY)
        try:
            begin_to_write(writer.connection, writer.cursor)
            self._run_together(members, is_gathering=self._may_gather(), is_hurried=True)
        except BaseException:
            self._give_up(members)
            raise
        finally:
            if not writer.is_dormant:
                writer.connection.set_progress_handler(None)

    def _serve(self, members: Sequence[Member]) -> None:
        """Do one's own work, and that of those that stand behind."""
        writer = self._writer
        others: list[Ticket] = []
        deadline = time.monotonic() + writer.patience.timeout
        durable = is_durable(members) or writer.line.wants_durable(MOST_TOGETHER)
        try:
            try:
                writer.synchronize(durable=durable)
                begin_to_write(writer.connection, writer.cursor)
            except DRIVER_ERRORS as error:  # those behind have their own time to wait
                _fail(members, writer.failure_of_members(error, committing=False))
                return
            # Taken only now: while the file was waited for, more have come.
            writer.line.take(others, MOST_TOGETHER, durable=durable)
            behind = [member for ticket in others for member in ticket.members if not member.is_done]
            members = [*members, *behind] if behind else members
            is_done = self._run_together(members, is_gathering=self._may_gather())
            if self._is_unfit:
                writer.patience.timeout = max(0.0, deadline - time.monotonic())
                is_done = self._run_together_again(members)
            if not is_done:
                for member in members:
                    writer.patience.timeout = max(0.0, deadline - time.monotonic())
                    self._run_alone(member, durable=durable)
            writer.relax()
        except BaseException:
            # A signal handler raised. Whose work is not done gets another turn.
            self._give_up(members)
            writer.line.put_back([ticket for ticket in others if not ticket.is_done])
            writer.line.served([ticket for ticket in others if ticket.is_done])
            raise
        writer.line.served(others)

    def _give_up(self, members: Sequence[Member]) -> None:
        """Undo what is not committed."""
        if self._committing and not self._writer.connection.in_transaction:
            _commit(self._committing)
        self._committing = ()
        self._writer.roll_back()
        _forget_outcomes(members)

    def _may_gather(self) -> bool:
        if not self._plain_groups_left:
            return True
        self._plain_groups_left -= 1
        return False

    def _run_together(self, members: Sequence[Member], *, is_gathering: bool, is_hurried: bool = False) -> bool:
        """Run all in the open transaction and commit. False: nothing of it was done, and each has to run by itself.

        A member that has written nothing may fail without further consequences. One that has ends the transaction.
        In a hurry nothing is done either where it takes too long, or one of them would have to wait.
        """
        writer = self._writer
        self._is_unfit = False
        try:
            if not self._run_steps(members, is_gathering=is_gathering, is_hurried=is_hurried):
                return self._undo(members)
        except UnfitError:
            self._is_unfit = True
            self._plain_groups_left = _PLAIN_GROUPS
            return self._undo(members)
        except DRIVER_ERRORS as error:
            if not is_hurried:
                writer.failure(error, committing=False)  # which may be that the disk is not to be trusted
            return self._undo(members)
        if is_hurried:
            # SQLite would ask once more behind a COMMIT, and call one interrupted that has happened.
            writer.connection.set_progress_handler(None)
        try:
            self._committing = members
            writer.commit()
        except (*DRIVER_ERRORS, StorageError) as error:
            self._committing = ()  # first: who interrupts what follows must not find it done
            found = writer.commit_failure(error)
            # Without WAL a reader in the way: whoever waited for it has waited long enough.
            if found is not error and not isinstance(found, OutcomeUnknownError | StorageBusyError):
                return self._undo(members)
            _fail([member for member in members if member.error is None], found)
            _commit([member for member in members if member.error is not None])  # which have failed by themselves
        else:
            _commit(members)
        self._committing = ()
        return True

    def _run_steps(self, members: Sequence[Member], *, is_gathering: bool, is_hurried: bool) -> bool:
        rows, now = self._shared, self._writer.time()
        rows.begin(is_gathering=is_gathering)
        count_changes, shared = self._writer.connection.total_changes, rows.shared
        changes = count_changes() + len(shared.rows)
        for member in members:
            if is_hurried and is_over():
                return False
            try:
                member.result = member.step(rows, now)
            except (UnfitError, *DRIVER_ERRORS):
                raise
            except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
                if count_changes() + len(shared.rows) != changes or (
                    is_hurried and isinstance(error, StorageBusyError)
                ):
                    return False
                member.error = error
            else:
                changes = count_changes() + len(shared.rows)
        rows.flush()
        return True

    def _run_together_again(self, members: Sequence[Member]) -> bool:
        """The same, where a row that was gathered did not fit, with each row put by itself."""
        writer = self._writer
        try:
            begin_to_write(writer.connection, writer.cursor)
        except DRIVER_ERRORS as error:
            writer.failure(error, committing=False)
            return False
        return self._run_together(members, is_gathering=False)

    def _undo(self, members: Sequence[Member]) -> bool:
        self._committing = ()
        self._writer.roll_back()
        _forget_outcomes(members)
        return False

    def _run_alone(self, member: Member, *, durable: bool) -> None:
        writer = self._writer
        is_committing = False
        try:
            writer.wake()
            writer.synchronize(durable=durable)  # where the connection is another one, it does not know yet
            writer.trust.require(writer.connection)
            begin_to_write(writer.connection, writer.cursor)
            self._shared.begin(is_gathering=False)
            member.result = member.step(self._shared, writer.time())
            is_committing = True
            self._committing = (member,)
            writer.commit()
            _commit(self._committing)
        except DRIVER_ERRORS as error:
            self._committing = ()  # as above
            _fail((member,), writer.failure_of_members(error, committing=is_committing))
        except Exception as error:  # noqa: BLE001  it is the member's, whose caller gets it
            self._committing = ()
            writer.roll_back()
            member.done(error=error)
        self._committing = ()


def is_durable(members: Sequence[Member]) -> bool:
    """Whether one of them asks for it."""
    return True in [member.durable for member in members]


def _forget_outcomes(members: Sequence[Member]) -> None:
    """Those that are not done run again, when nothing may be left of what was undone."""
    for member in members:
        if not member.is_done:
            member.result = member.error = None


def _commit(members: Sequence[Member]) -> None:
    for member in members:
        member.finish()


def _fail(members: Sequence[Member], error: StorageError) -> None:
    """The same error for each, but an object of its own: threads that raise one object write to each other's."""
    for member in members:
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        member.done(error=own)
