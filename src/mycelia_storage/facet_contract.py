"""The kernel's storage contract as a table: its methods, their options, its properties; and the check of an object.

Called by `StorageFacet` to read options, and by users through `enforce_contract`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from mycelia_storage.errors import ContractError, InvalidValueError

TRANSACTION_ID: Final = "transaction_id"


class Method(NamedTuple):
    """What a method takes before its options, and the names of these."""

    arguments: tuple[str, ...]
    options: tuple[str, ...]


METHODS: Final[dict[str, Method]] = {
    "get": Method(("key",), ("namespace", "include_metadata", TRANSACTION_ID)),
    "set": Method(("key", "value"), ("namespace", "metadata", "overwrite", "ttl", "if_version", TRANSACTION_ID)),
    "delete": Method(("key",), ("namespace", "if_version", TRANSACTION_ID)),
    "has": Method(("key",), ("namespace", TRANSACTION_ID)),
    "get_many": Method(("keys",), ("namespace", "include_metadata", TRANSACTION_ID)),
    "set_many": Method(("entries",), ("namespace", "metadata", "overwrite", "ttl", TRANSACTION_ID)),
    "delete_many": Method(("keys",), ("namespace", TRANSACTION_ID)),
    "list": Method((), ("namespace", "pattern", "limit", "offset", TRANSACTION_ID)),
    "query": Method(
        ("filter",), ("namespace", "filter", "sort", "limit", "offset", "include_metadata", TRANSACTION_ID)
    ),
    "count": Method((), ("namespace", "filter", TRANSACTION_ID)),
    "create_namespace": Method(("name",), ("metadata", TRANSACTION_ID)),
    "delete_namespace": Method(("name",), ("recursive", TRANSACTION_ID)),
    "list_namespaces": Method((), (TRANSACTION_ID,)),
    "begin_transaction": Method((), ("isolation",)),
    "commit": Method((TRANSACTION_ID,), ()),
    "rollback": Method((TRANSACTION_ID,), ()),
    "get_metadata": Method(("key",), ("namespace", TRANSACTION_ID)),
    "set_metadata": Method(("key", "metadata"), ("namespace", "merge", "if_version", TRANSACTION_ID)),
    "clear": Method((), ("namespace", TRANSACTION_ID)),
    "get_status": Method((), ()),
}
# An entry of set_many has options of its own.
ENTRY_OPTIONS: Final = ("namespace", "metadata", "overwrite", "ttl", "if_version")

_FLAGS: Final = frozenset({"overwrite", "include_metadata", "recursive", "merge"})
_CAMEL: Final = {"includeMetadata": "include_metadata", "ifVersion": "if_version", "transactionId": TRANSACTION_ID}
_EVERY_OPTION: Final = sorted({name for method in METHODS.values() for name in method.options})


def read_options(where: str, known: tuple[str, ...], options: object) -> dict[str, Any]:
    """Options under their snake_case names. Raises InvalidValueError for one that is unknown or given twice."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise InvalidValueError(f"{where}: options are a mapping, not {type(options).__name__}")
    given: dict[str, Any] = {}
    for written, value in options.items():
        name = _CAMEL.get(written, written) if isinstance(written, str) else written
        if name not in known:
            raise InvalidValueError(_unknown(where, known, written, name))
        if name in given:
            raise InvalidValueError(f"{where}: the option {name!r} is given twice, in camelCase too")
        if name in _FLAGS and not isinstance(value, bool):
            raise InvalidValueError(f"{where}: the option {name!r} is True or False, not {type(value).__name__}")
        given[name] = value
    return given


def _unknown(where: str, known: tuple[str, ...], written: object, name: object) -> str:
    taken = f"it takes {', '.join(known)}" if known else "it takes none"
    if not isinstance(written, str):
        return f"{where}: the name of an option is a str, not {type(written).__name__}; {taken}"
    shown = ascii(written if len(written) <= 80 else written[:80] + "…")
    if name in _EVERY_OPTION:
        return f"{where} takes no option {shown}; {taken}"
    near = difflib.get_close_matches(written, (*_EVERY_OPTION, *_CAMEL), n=1, cutoff=0.5)
    return f"{where}: unknown option {shown}" + (f": did you mean {near[0]!r}?" if near else f"; {taken}")


# ---- the check of an object


def enforce_contract(obj: object) -> None:
    """Check that an object has every method and property of the kernel's storage contract, of the right shape.

    Raises ContractError that names every member that is missing or wrong, in its message and in `problems`. Methods
    are coroutine functions with the contract's positional arguments and a last one, `options`, that may be left out.
    No method is called.
    """
    problems: dict[str, str] = {}
    for name, method in METHODS.items():
        problem = _problem_of_method(obj, name, method)
        if problem:
            problems[name] = problem
    for name, wanted in _PROPERTIES.items():
        problem = _problem_of_property(obj, name, wanted)
        if problem:
            problems[name] = problem
    if problems:
        listed = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
        message = f"{type(obj).__name__} does not keep the storage contract: {listed}"
        raise ContractError(message, problems)


_OBJECT: Final = "an object"
_PROPERTIES: Final[dict[str, type | str]] = {
    "supports_transactions": bool,
    "supports_query": bool,
    "supports_metadata": bool,
    "_storage_backend": _OBJECT,
    "_config": Mapping,
}
_PRIMITIVES: Final = (str, bytes, bool, int, float, complex)


def _problem_of_method(obj: object, name: str, method: Method) -> str | None:
    try:
        found = getattr(obj, name)
    except AttributeError:
        return "missing"
    except Exception as error:  # noqa: BLE001  a property of somebody else's
        return f"reading it raises {type(error).__name__}"
    if not callable(found):
        return f"a method is needed, not {type(found).__name__}"
    called = found if inspect.isroutine(found) or inspect.isfunction(found) else type(found).__call__
    if not inspect.iscoroutinefunction(found) and not inspect.iscoroutinefunction(called):
        return "not async"
    return _problem_of_shape(found, method.arguments)


def _problem_of_shape(found: Any, arguments: tuple[str, ...]) -> str | None:
    wanted = f"({', '.join((*arguments, 'options=None'))})"
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return f"it does not tell its parameters; {wanted} is needed"
    positional = [
        parameter
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(positional) <= len(arguments) or positional[len(arguments)].name != "options":
        return f"its parameters are {signature}, and {wanted} is needed"
    try:
        signature.bind(*arguments)
        signature.bind(*arguments, options={})
    except TypeError as error:
        return f"it cannot be called as {wanted}: {error}"
    return None


def _problem_of_property(obj: object, name: str, wanted: type | str) -> str | None:
    try:
        found = getattr(obj, name)
    except AttributeError:
        return "missing"
    except Exception as error:  # noqa: BLE001  a property of somebody else's
        return f"reading it raises {type(error).__name__}"
    if isinstance(wanted, str):
        is_right = found is not None and not isinstance(found, _PRIMITIVES)
    else:
        is_right = isinstance(found, wanted)
    if is_right:
        return None
    needed = wanted if isinstance(wanted, str) else f"a {wanted.__name__}"
    return f"{needed} is needed, not {type(found).__name__}"
