"""What the pages of a file are like: with a checksum each, encrypted, or plain; and what opening such a file takes.

Called by whatever opens a connection, and by whoever recognises a file. The beginning of a file says what it is, since
SQLite leaves bytes 16 to 23 readable in an encrypted one. For two kinds a connection needs more than a path:

1. Checksums: SQLite's extension cksumvfs, a layer between SQLite and the file. It adds to each page that is written to
   the file a checksum in the eight bytes that are reserved at its end, and looks at it when the page is read. A
   connection that writes without that layer leaves pages that nobody can read any more.
2. Encryption: a key, given before any other statement. Deriving one from a passphrase takes 20 ms, on purpose; so it is
   done once for each file, and not by each connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import apsw

from mycelia_storage.errors import ConfigError

if TYPE_CHECKING:
    from mycelia_storage.options import Options, Secret

Kind: TypeAlias = Literal["new", "plain", "checksums", "encrypted", "unknown"]

# So much of a file tells what kind it is.
HEADER_BYTES: Final = 24
MAGIC: Final = b"SQLite format 3\0"
# SQLite's own layer, under all others.
FILE_LAYER: Final = "unix" if os.name == "posix" else "win32"
CHECKSUM_BYTES: Final = 8

_CHECKSUM_LAYER: Final = "cksmvfs"
_CIPHER_LAYER: Final = f"multipleciphers-{FILE_LAYER}"
# ChaCha20 with Poly1305: each page is authenticated. The salt is where a plain file has its magic words.
_CIPHER: Final = "chacha20"
_CIPHER_BYTES: Final = 32
_SALT_BYTES: Final = 16
_KEY_BYTES: Final = 32
_ITERATIONS: Final = 64_007
_MOST_REMEMBERED: Final = 64
_PAGE_SIZES: Final = tuple(2**power for power in range(9, 17))
LONGEST_PAGE: Final = _PAGE_SIZES[-1]
# With which the first page of a new file ends: so ends the first table in it.
_ENDS_PLAIN: Final = b" NULL)"

_EXCHANGE: Final = "pip uninstall apsw, then pip install apsw-sqlite3mc"
_DRIVER_NEEDED: Final = (
    "encryption_key: encryption needs the package apsw-sqlite3mc in place of apsw, since both have the same module: "
    f"{_EXCHANGE}"
)


def require_driver(options: Options) -> None:
    """Raise ConfigError where a key is given and the driver knows nothing of keys; it would ignore one silently."""
    if options.encryption_key is not None and not hasattr(apsw, "mc_version"):
        raise ConfigError(_DRIVER_NEEDED)


def kind_of(header: bytes) -> Kind:
    """What kind of file begins like that."""
    if not header.strip(b"\0"):
        return "new"
    if header.startswith(MAGIC):
        return "checksums" if header[20:21] == bytes([CHECKSUM_BYTES]) else "plain"
    # The page size, two version numbers, what is reserved, and three constants of SQLite's.
    is_readable = _page_size(header) in _PAGE_SIZES and header[18:19] in b"\1\2" and header[19:20] in b"\1\2"
    return "encrypted" if is_readable and header[20:24] == bytes([_CIPHER_BYTES, 64, 32, 32]) else "unknown"


def require_fitting(path: str, kind: Kind, options: Options) -> None:
    """Raise ConfigError where a store's file is of another kind than the options say."""
    if kind == "encrypted":
        require_key(path, options.encryption_key)
    elif kind in {"plain", "checksums"} and options.encryption_key is not None:
        raise ConfigError(
            f"encryption_key: {path} is not encrypted. rekey() encrypts it; or restore it into a new store that is "
            "opened with the key"
        )
    elif kind == "plain" and options.checksums:
        raise ConfigError(
            f"checksums: {path} was made without, and they cannot be added to it: restore it into a new store that is "
            "opened with checksums=True"
        )
    elif kind == "checksums" and options.checksums is False:
        raise ConfigError(f"checksums: {path} was made with checksums: leave checksums out, or give True")


def require_key(path: str, secret: Secret | None) -> Secret:
    """The key for an encrypted file. Raises ConfigError where there is none."""
    if secret is not None:
        return secret
    driver = "" if hasattr(apsw, "mc_version") else f", which needs the package apsw-sqlite3mc ({_EXCHANGE})"
    raise ConfigError(f"encryption_key: {path} is encrypted, and no key was given{driver}")


# ---- checksums


def layer_for(kind: Kind) -> str | None:
    """The name of the layer to open a file of that kind by; None is the default one."""
    if kind == "checksums":
        _load_checksums()
        return _CHECKSUM_LAYER
    return _CIPHER_LAYER if kind == "encrypted" else None


class _Loading:
    """Loads the extension once in a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_done = False

    def __call__(self) -> None:
        with self._lock:
            if not self._is_done:
                self._load()
                self._is_done = True

    @staticmethod
    def _load() -> None:
        """It takes the layer that is the default one to stand on, and makes itself the default one: put that back."""
        extras: Any = importlib.import_module("apsw.sqlite_extra")
        if extras.has("cksumvfs") is None:
            message = "this installation of apsw lacks SQLite's extension cksumvfs: install a wheel of apsw"
            raise ConfigError(f"checksums: {message}")
        default = apsw.vfs_names()[0]
        apsw.set_default_vfs(FILE_LAYER)
        try:
            with contextlib.closing(apsw.Connection(":memory:")) as connection:
                extras.load(connection, "cksumvfs")
        finally:
            apsw.set_default_vfs(default)

    def begin_anew(self) -> None:
        """For the child of a fork: another thread of the parent may have been at it."""
        self._lock = threading.Lock()


_load_checksums: Final = _Loading()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_load_checksums.begin_anew)


def has_damaged_start(start: bytes) -> bool:
    """Whether the first page of a file, which begins like that, had a checksum and does not fit it.

    SQLite reads in that page that a file has checksums at all, so a flipped bit could turn them off. `start` is as long
    as the longest page, or the whole file.
    """
    kind, size = kind_of(start), _page_size(start)
    if kind not in {"plain", "checksums", "unknown"} or start[:size].endswith(_ENDS_PLAIN):
        return False
    if kind == "checksums" and size in _PAGE_SIZES:
        return not _is_fitting(start[:size])
    sizes = (size,) if kind == "plain" and size in _PAGE_SIZES else _PAGE_SIZES
    return any(_is_fitting(_as_with_checksums(start[:size], size)) for size in sizes)


def _as_with_checksums(page: bytes, size: int) -> bytes:
    """The page as it was, if it had checksums and the damage is where the header says so."""
    # SQLite writes 65,536, which two bytes do not hold, as 1.
    return MAGIC + struct.pack(">H", size if size < 65536 else 1) + page[18:20] + bytes([CHECKSUM_BYTES]) + page[21:]


def _is_fitting(page: bytes) -> bool:
    """Whether a page ends with its checksum, as cksumvfs makes it."""
    if len(page) not in _PAGE_SIZES:
        return False
    words = struct.unpack(f"<{len(page) // 4}I", page)
    first = second = 0
    for one, other in zip(words[:-2:2], words[1:-2:2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return words[-2:] == (first, second)


def _page_size(header: bytes) -> int:
    size = int.from_bytes(header[16:18], "big")
    return 65536 if size == 1 else size


# ---- encryption


def unlock(connection: apsw.Connection, path: str, secret: Secret, header: bytes) -> None:
    """Give a connection that was just opened its key; a file that is new gets a salt of its own.

    Raises ConfigError where the key does not open the file.
    """
    salt = header[:_SALT_BYTES] if header.strip(b"\0") else os.urandom(_SALT_BYTES)
    key = _derived(secret, salt)
    connection.pragma("cipher", _CIPHER)
    # As two numbers in hexadecimal there is nothing to quote in it.
    connection.pragma("key", f"raw:{key.hex()}{salt.hex()}")
    if salt in secret.proven or not header.strip(b"\0"):
        return
    try:
        connection.pragma("schema_version")
    except apsw.NotADBError:
        raise ConfigError(
            f"encryption_key: {path} does not open with this key: it has another one, or its first page is damaged"
        ) from None
    secret.proven.add(salt)


def _derived(secret: Secret, salt: bytes) -> bytes:
    """What SQLite3 Multiple Ciphers itself makes of a passphrase for this cipher."""
    key = secret.derived.get(salt)
    if key is None:
        key = hashlib.pbkdf2_hmac("sha256", secret.reveal(), salt, _ITERATIONS, _KEY_BYTES)
        if len(secret.derived) >= _MOST_REMEMBERED:
            secret.derived.clear()
        secret.derived[salt] = key
    return key
