"""A queue of jobs that several processes work off: `python examples/jobs.py DIRECTORY`.

A job waits in the namespace `waiting`. Whoever takes it writes down until when it is his, in the same transaction, so
that no two have it. A worker that dies keeps its job only until then: after that somebody else gets it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from mycelia_storage import Storage, Transaction, open_storage

LEASE_SECONDS = 30.0


def submit(store: Storage, name: str, number: int) -> None:
    """Put a job into the queue, unless one of that name was ever there."""

    def step(tx: Transaction) -> None:
        if not tx.has(name, namespace="done"):
            tx.add(name, {"number": number, "tries": 0, "until": 0.0}, namespace="waiting")

    store.run_transaction(step)


def claim(store: Storage) -> tuple[str, Any] | None:
    """Take the first job that nobody has; None when there is none."""

    def step(tx: Transaction) -> tuple[str, Any] | None:
        now = time.time()
        free = {"field": "until", "operator": "lte", "value": now}
        for entry in tx.query(free, limit=1, namespace="waiting"):
            job = {**entry.value, "tries": entry.value["tries"] + 1, "until": now + LEASE_SECONDS}
            tx.set(entry.key, job, namespace="waiting")
            return entry.key, job
        return None

    return store.run_transaction(step)


def finish(store: Storage, name: str, job: Any, result: object) -> bool:
    """Write the result and remove the job as one step; False when the job had become somebody else's."""

    def step(tx: Transaction) -> bool:
        if tx.get(name, namespace="waiting") != job:
            return False
        tx.delete(name, namespace="waiting")
        tx.set(name, {"result": result, "tries": job["tries"], "worker": os.getpid()}, namespace="done")
        tx.increment("finished")
        return True

    return store.run_transaction(step)


def work(path: Path) -> None:
    """Work until nothing is left. The slow part runs outside of any transaction."""
    with open_storage(path) as store:
        while (claimed := claim(store)) is not None:
            name, job = claimed
            result = sum(number * number for number in range(job["number"]))
            finish(store, name, job, result)


def main(directory: Path, jobs: int = 100, workers: int = 4) -> None:
    """Submit jobs, let processes do them, and show what came out."""
    path = directory / "jobs.db"
    with open_storage(path) as store:
        store.create_index("until", name="waiting_until", namespace="waiting")
        for number in range(jobs):
            submit(store, f"job:{number:04}", number)
        processes = [multiprocessing.Process(target=work, args=(path,)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        done = store.count(namespace="done")
        once = store.count({"field": "tries", "operator": "eq", "value": 1}, namespace="done")
        print(f"{done} jobs done, {once} of them at the first try, {store.count(namespace='waiting')} left")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
