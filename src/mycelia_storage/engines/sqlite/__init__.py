"""The SQLite engine: one file, one writer connection, a few reader connections."""

from mycelia_storage.engines.sqlite.engine import SQLiteEngine

__all__ = ["SQLiteEngine"]
