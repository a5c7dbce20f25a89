"""Hazard: a connection that was to be encrypted is not, or leads to somebody else.

The server of the package is built without TLS. Where an installed PostgreSQL has it, and there is an `openssl` to make
certificates with, the store is tried with that one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mycelia_storage import StorageUnavailableError, open_storage
from mycelia_storage.testing.postgres_server import PostgresServer, all_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator


def has_tls(binaries: str) -> bool:
    config = Path(binaries) / "pg_config"
    if not config.exists():
        return False
    told = subprocess.run([config, "--configure"], capture_output=True, text=True, check=True).stdout
    return "--with-openssl" in told or "--with-ssl=openssl" in told


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority, and its key, which the server's user can read."""
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    what = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made, *what], check=True, capture_output=True)
    owner = directory.stat()
    for path in (certificate, key):
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(0o600)
    return certificate, key


@pytest.fixture
def encrypting() -> Iterator[tuple[PostgresServer, Path]]:
    """A server with TLS, and the certificate to know it by."""
    found = [binaries for binaries in all_binaries() if has_tls(binaries)]
    if not found or shutil.which("openssl") is None:
        pytest.skip("no PostgreSQL with TLS is installed, or no openssl")
    with PostgresServer(tcp=True, binaries=found[0]) as server:
        certificate, key = make_certificate(Path(server.directory) / "data", "mine")
        server.configure(ssl=True, ssl_cert_file=str(certificate), ssl_key_file=str(key))
        yield server, certificate


def test_a_connection_is_encrypted_where_that_is_required(
    encrypting: tuple[PostgresServer, Path], tmp_path: Path
) -> None:
    server, certificate = encrypting
    root = shutil.copy(certificate, tmp_path / "root.crt")
    for more, is_encrypted in (
        ("sslmode=require", "yes"),
        ("", "yes"),
        (f"sslmode=verify-full&sslrootcert={root}", "yes"),
        ("sslmode=disable", "no"),
    ):
        with open_storage(f"{server.dsn()}?{more}") as store:
            store.set("key", more)
            assert store.get_status().details["encrypted_connection"] == is_encrypted
            assert [entry.value for entry in store.scan()] == [more]  # on a connection of its own


def test_a_server_that_is_somebody_else_is_not_talked_to(
    encrypting: tuple[PostgresServer, Path], tmp_path: Path
) -> None:
    server, _ = encrypting
    other, _ = make_certificate(tmp_path, "other")
    with pytest.raises(StorageUnavailableError) as refused:
        open_storage(f"{server.dsn()}?sslmode=verify-full&sslrootcert={other}")
    assert "certificate verify failed" in str(refused.value.__cause__)


def test_a_server_without_encryption_is_refused_where_it_is_required() -> None:
    with PostgresServer(tcp=True) as server:
        with pytest.raises(StorageUnavailableError) as refused:
            open_storage(f"{server.dsn()}?sslmode=require")
        assert "SSL" in str(refused.value.__cause__)
        with open_storage(server.dsn()) as store:
            assert store.get_status().details["encrypted_connection"] == "no"
