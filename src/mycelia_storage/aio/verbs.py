"""The awaited verbs, each one line over the verb of `Storage`, and the helper that makes them.

Called by users through `AsyncStorage`, `AsyncTransaction` and `AsyncNamespace`. Names, defaults and overloads of the
sync verbs survive in type checkers and in `inspect`. Where a call is run is decided by whoever has the verb (`Front`);
here it is said what kind of call each verb is.
"""

from __future__ import annotations

import functools
from asyncio import sleep
from collections.abc import Iterable, Mapping, Sequence
from contextvars import copy_context
from types import FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from mycelia_storage.aio.at_once import LATER
from mycelia_storage.aio.streams import paging, scanning
from mycelia_storage.verbs import Verbs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from mycelia_storage.aio.at_once import AtOnce
    from mycelia_storage.aio.jobs import Job

P = ParamSpec("P")
R = TypeVar("R")
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
C = TypeVar("C", bound=type)

# A read of more keys than this is one that others do not wait behind.
_MANY_KEYS = 500


class Front(Protocol[V_co]):
    """What an awaited verb needs of the object that it is called on: a way to run a function on the sync verbs."""

    @property
    def _converts(self) -> bool:
        """Whether values are made those of a type."""
        ...

    @property
    def _here(self) -> tuple[AtOnce, V_co] | None:
        """What may run a short read on this very thread, and the verbs to run it on."""
        ...

    def _read(self, function: Callable[[V_co], R], /) -> Awaitable[R]:
        """Run a short read. Others may share its way to the thread and back."""
        ...

    def _query(self, function: Callable[[V_co], R], /) -> Awaitable[R]:
        """Run a read that may take long. It is stopped when the caller is cancelled."""
        ...

    def _write(
        self,
        verb: Callable[Concatenate[V_co, ...], R],
        arguments: Sequence[Any],
        options: Mapping[str, Any],
        /,
        *,
        is_small: bool,
    ) -> Awaitable[R]:
        """Call a verb that writes, which may share its commit with others. `is_small`: it writes a few rows."""
        ...

    def _write_alone(self, function: Callable[[V_co], R], /) -> Awaitable[R]:
        """Run a write that shares its commit with nobody."""
        ...

    def _load(self, function: Callable[[V_co], R], /) -> Awaitable[R]:
        """Run something that writes again and again, and draws what it writes from the caller."""
        ...

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[V_co], Any]], Job]:
        """What runs the steps of one walk, in order. `is_held`: it reads from something that it holds already."""
        ...


def reading(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that reads little."""

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        here = self._here
        if here is not None:
            desk, own = here
            found = desk.read(verb, own, args, options)
            if found is not LATER:
                if desk.must_yield:
                    await sleep(0)
                return found
        return await self._read(lambda verbs: verb(verbs, *args, **options))

    return call


def reading_many(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that reads as much as its first argument is long."""
    short, long = reading(verb), querying(verb)

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        keys: Any = args[0] if args else options.get("keys")
        return await (long if _is_long(keys) else short)(self, *args, **options)

    return call


def querying(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that may read for long."""

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        return await self._query(lambda verbs: verb(verbs, *args, **options))

    return call


def writing(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that writes a row or a few."""

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        return await self._write(verb, args, options, is_small=True)

    return call


def writing_many(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that writes any number of rows: what it is given one by one, or all that are there.

    A write may be run twice, when the commit that it shared could not be made. So an iterable is walked through here,
    where the caller's own code runs on the caller's own thread.
    """

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        again = [_drawn(part) for part in args]
        named = {name: _drawn(part) for name, part in options.items()}
        return await self._write(verb, again, named, is_small=False)

    return call


def writing_alone(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that takes long to write, or calls a function of the caller's.

    The function runs in the thread that writes, and sees the caller's context variables.
    """

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        context = copy_context()
        return await self._write_alone(lambda verbs: context.run(verb, verbs, *args, **options))

    return call


def loading(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that writes a stream. What is drawn from sees the caller's context variables."""

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        context = copy_context()
        return await self._load(lambda verbs: context.run(verb, verbs, *args, **options))

    return call


def converting(
    verb: Callable[Concatenate[V, P], R],
) -> Callable[Concatenate[Front[V], P], Coroutine[Any, Any, R]]:
    """The awaited form of a verb that writes, and in a view with a type makes values of it, which is the caller's."""
    alone, shared = writing_alone(verb), writing(verb)

    @functools.wraps(verb)
    async def call(self: Front[V], /, *args: P.args, **options: P.kwargs) -> R:
        return await (alone if self._converts else shared)(self, *args, **options)

    return call


def _drawn(part: object) -> object:
    """What can be walked through again."""
    return list(part) if isinstance(part, Iterable) and not isinstance(part, Mapping | Sequence) else part


def _is_long(keys: Any) -> bool:
    try:
        return len(keys) > _MANY_KEYS
    except TypeError:
        return True  # an iterator


def named(cls: C) -> C:
    """Give a class its verbs under its own name, which is what Python warns with where an await was forgotten."""
    for name in dir(cls):
        verb = getattr(cls, name)
        of_store = getattr(verb, "__wrapped__", None)
        if isinstance(verb, FunctionType) and of_store is not None:
            own = FunctionType(verb.__code__, verb.__globals__, name, verb.__defaults__, verb.__closure__)
            functools.update_wrapper(own, of_store)
            own.__qualname__, own.__module__ = f"{cls.__qualname__}.{name}", cls.__module__
            setattr(cls, name, own)
    return cls


class AsyncVerbs:
    """Every verb on data that is not written by hand. See `Verbs` for what each does."""

    # ---- one entry
    get: Final = reading(Verbs.get)
    get_entry: Final = reading(Verbs.get_entry)
    set: Final = writing(Verbs.set)
    add: Final = writing(Verbs.add)
    modify: Final = writing_alone(Verbs.modify)
    merge: Final = writing(Verbs.merge)
    increment: Final = writing(Verbs.increment)
    touch: Final = writing(Verbs.touch)
    take: Final = writing(Verbs.take)
    delete: Final = writing(Verbs.delete)
    has: Final = reading(Verbs.has)
    get_metadata: Final = reading(Verbs.get_metadata)
    set_metadata: Final = writing(Verbs.set_metadata)

    # ---- many
    get_many: Final = reading_many(Verbs.get_many)
    get_entries: Final = reading_many(Verbs.get_entries)
    set_many: Final = writing_many(Verbs.set_many)
    add_many: Final = writing_many(Verbs.add_many)
    delete_many: Final = writing_many(Verbs.delete_many)
    load: Final = loading(Verbs.load)
    clear: Final = writing_many(Verbs.clear)
    clear_all: Final = writing_many(Verbs.clear_all)

    # ---- finding
    list_keys: Final = querying(Verbs.list_keys)
    query: Final = querying(Verbs.query)
    count: Final = querying(Verbs.count)
    delete_where: Final = writing_alone(Verbs.delete_where)
    explain: Final = querying(Verbs.explain)
    scan: Final = scanning(Verbs.scan)
    pages: Final = paging(Verbs.pages)

    # ---- indexes and namespaces
    create_index: Final = writing_alone(Verbs.create_index)
    drop_index: Final = writing_alone(Verbs.drop_index)
    list_indexes: Final = reading(Verbs.list_indexes)
    create_namespace: Final = writing(Verbs.create_namespace)
    delete_namespace: Final = writing_alone(Verbs.delete_namespace)
    list_namespaces: Final = querying(Verbs.list_namespaces)
    namespace_info: Final = querying(Verbs.namespace_info)

    # ---- where they run

    @property
    def _converts(self) -> bool:
        return False

    @property
    def _here(self) -> tuple[AtOnce, Any] | None:
        return None

    def _read(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        raise NotImplementedError

    def _query(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        raise NotImplementedError

    def _write(
        self, verb: Callable[..., R], arguments: Sequence[Any], options: Mapping[str, Any], /, *, is_small: bool
    ) -> Awaitable[R]:
        raise NotImplementedError

    def _write_alone(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        raise NotImplementedError

    def _load(self, function: Callable[[Any], R], /) -> Awaitable[R]:
        return self._write_alone(function)

    def _walk(self, *, is_held: bool) -> Callable[[Callable[[Any], Any]], Job]:
        raise NotImplementedError
