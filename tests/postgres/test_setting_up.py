"""Hazard: what docs/postgresql.md tells an administrator to do does not let the application in, or lets it do more."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from mycelia_storage import StorageReadOnlyError, open_storage
from mycelia_storage.testing.postgres_server import PostgresServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "postgresql.md"


def statements() -> list[list[str]]:
    """The SQL of the page, block by block."""
    blocks = re.findall(r"^```sql\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [[line for line in block.splitlines() if line] for block in blocks]


@pytest.mark.parametrize("makes_its_schema", [True, False])
def test_the_roles_of_the_manual_may_do_what_they_need(makes_its_schema: bool) -> None:
    make_roles, make_schema, make_reader = statements()
    with PostgresServer(tcp=True) as server:
        for statement in make_roles:
            server.execute(statement)
        app = server.dsn("app", "app", password="a long one")
        reader = server.dsn("app", "reader", password="another one")
        if not makes_its_schema:
            server.execute("alter database app owner to postgres")
            with pytest.raises(StorageReadOnlyError, match="does not permit"):
                open_storage(app)
            for statement in make_schema:
                server.execute(statement, dbname="app")
        with open_storage(app) as store:
            store.set("key", {"n": 1})
            store.create_index("n")
            for statement in make_reader:
                server.execute(statement, dbname="app")
            with open_storage(reader, read_only=True) as readers:
                assert readers.get("key") == {"n": 1}
                assert readers.query({"field": "n", "operator": "eq", "value": 1}).keys() == ["key"]
                with pytest.raises(StorageReadOnlyError):
                    readers.set("key", 2)
            with open_storage(reader) as readers:
                assert readers.get("key") == {"n": 1}
                with pytest.raises(StorageReadOnlyError, match="does not permit"):
                    readers.set("key", 2)
            store.clear()
        with psycopg.connect(reader) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("delete from mycelia.entries")
