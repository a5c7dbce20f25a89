"""The engine that keeps a store in a schema of a PostgreSQL database. Needs the extra `postgres`."""

from mycelia_storage.engines.postgres.engine import PostgresEngine

__all__ = ["PostgresEngine"]
