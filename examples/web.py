"""A small web application: notes over HTTP, kept in a store that opens and closes with the server.

It is plain ASGI, which FastAPI and Starlette speak too; any ASGI server runs it (`uvicorn examples.web:app`).
The same with FastAPI:

    @asynccontextmanager
    async def lifespan(app):
        async with open_async_storage(PATH) as app.state.store:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.put("/notes/{name}")
    async def put(name: str, note: dict, request: Request) -> dict:
        return {"version": await request.app.state.store.set(name, note, namespace="notes")}
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from mycelia_storage import AsyncStorage, InvalidValueError, KeyNotFoundError, StorageError, open_async_storage

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

PATH = os.environ.get("NOTES", "notes.db")
PREFIX = "/notes/"


class Notes:
    """`GET`, `PUT` and `DELETE` of `/notes/NAME`; `GET /notes/` lists names; `POST /notes/NAME` counts a view."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store: AsyncStorage

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Called by the server: once for its own life, and for each request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            status, answer = await self._answer(scope["method"], scope["path"], receive)
            body = json.dumps(answer).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        """Open after the server has forked its workers, in each of them; close when it ends."""
        await receive()
        async with open_async_storage(self.path) as self.store:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, method: str, path: str, receive: Receive) -> tuple[int, object]:
        if not path.startswith(PREFIX):
            return 404, {"error": "nothing is here"}
        try:
            return await self._act(method, path.removeprefix(PREFIX), receive)
        except KeyNotFoundError:
            return 404, {"error": "there is no such note"}
        except (InvalidValueError, ValueError, RecursionError) as error:  # of json, where it is nested very deep
            return 422, {"error": str(error)}
        except StorageError as error:
            # What may go better later is the server's trouble, not the caller's.
            return (503 if error.retryable else 500), {"error": error.code}

    async def _act(self, method: str, name: str, receive: Receive) -> tuple[int, object]:
        notes = self.store.namespace("notes")
        if method == "GET" and not name:
            return 200, await notes.list_keys()
        if method == "GET":
            entry = await notes.get_entry(name)
            return 200, {"note": entry.value, "version": entry.version}
        if method == "PUT":
            return 200, {"version": await notes.set(name, json.loads(await _body(receive)))}
        if method == "POST":
            async with self.store.transaction() as tx:
                await tx.get_entry(name, namespace="notes")
                return 200, {"views": await tx.increment(name, namespace="views")}
        if method == "DELETE":
            return (200 if await notes.delete(name) else 404), {}
        return 405, {"error": method}


async def _body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


app = Notes(PATH)
