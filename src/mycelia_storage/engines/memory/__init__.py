"""The memory engine: rows in dictionaries, with the same transactions, isolation and rollback as a file.

It is the reference for every answer, so it is written to be believed, not to be fast.
"""

from mycelia_storage.engines.memory.engine import MemoryEngine

__all__ = ["MemoryEngine"]
