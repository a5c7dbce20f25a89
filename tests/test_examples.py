"""The programs in `examples/` do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mycelia_storage import open_storage

if TYPE_CHECKING:
    from types import ModuleType

    import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_looked_at() -> None:
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == [
        "jobs",
        "journal",
        "web",
    ]  # journal: test_example_engine.py


def test_several_processes_do_every_job_once(tmp_path: Path) -> None:
    program = [sys.executable, "-Wignore:This process:DeprecationWarning", str(EXAMPLES / "jobs.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=40, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "100 jobs done, 100 of them at the first try, 0 left\n"
    with open_storage(tmp_path / "jobs.db") as store:
        assert store.get("finished") == 100
        assert store.get_entry("job:0004", namespace="done").value["result"] == 14


def test_a_job_of_a_worker_that_died_is_done_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = load("jobs", monkeypatch)
    now = [1000.0]
    monkeypatch.setattr(jobs.time, "time", lambda: now[0])
    with open_storage(tmp_path / "jobs.db") as store:
        jobs.submit(store, "job", 3)
        name, first = jobs.claim(store)
        assert jobs.claim(store) is None
        now[0] += jobs.LEASE_SECONDS
        name, second = jobs.claim(store)
        assert second["tries"] == 2
        assert not jobs.finish(store, name, first, 0), "it is somebody else's by now"
        assert jobs.finish(store, name, second, 5)
        jobs.submit(store, "job", 3)
        assert jobs.claim(store) is None, "what is done is not done again"


class Client:
    """Calls an ASGI application as a server does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        messages: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app({"type": "http", "method": method, "path": path}, receive, send)
        return messages[0]["status"], json.loads(messages[1]["body"])


def test_the_web_application_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = load("web", monkeypatch).Notes(str(tmp_path / "notes.db"))

    async def main() -> None:
        inbox: asyncio.Queue[Any] = asyncio.Queue()
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        server = asyncio.create_task(app({"type": "lifespan"}, inbox.get, outbox.put))
        await inbox.put({"type": "lifespan.startup"})
        assert (await outbox.get())["type"] == "lifespan.startup.complete"

        call = Client(app)
        assert await call("GET", "/notes/tea") == (404, {"error": "there is no such note"})
        status, written = await call("PUT", "/notes/tea", b'{"text": "green"}')
        assert status == 200
        assert await call("GET", "/notes/tea") == (200, {"note": {"text": "green"}, "version": written["version"]})
        views = await asyncio.gather(*(call("POST", "/notes/tea") for _ in range(20)))
        assert sorted(answer["views"] for _, answer in views) == [*range(1, 21)]
        assert await call("GET", "/notes/") == (200, ["tea"])
        assert (await call("PUT", "/notes/tea", b"{"))[0] == 422
        assert (await call("POST", "/notes/none"))[0] == 404
        assert await call("DELETE", "/notes/tea") == (200, {})
        assert await call("DELETE", "/notes/tea") == (404, {})
        assert (await call("PATCH", "/notes/tea"))[0] == 405
        assert (await call("GET", "/"))[0] == 404

        await inbox.put({"type": "lifespan.shutdown"})
        assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
        await server

    asyncio.run(main())
    with open_storage(tmp_path / "notes.db") as store:
        assert store.get("tea", namespace="views") == 20
