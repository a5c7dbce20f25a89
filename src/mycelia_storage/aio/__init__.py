"""The store for asyncio: `AsyncStorage` and what belongs to it.

Called by users through the names of `mycelia_storage`.
"""

from mycelia_storage.aio.namespace import AsyncNamespace
from mycelia_storage.aio.storage import AsyncStorage, open_async_storage
from mycelia_storage.aio.streams import AsyncScan
from mycelia_storage.aio.transaction import AsyncTransaction

__all__ = ["AsyncNamespace", "AsyncScan", "AsyncStorage", "AsyncTransaction", "open_async_storage"]
