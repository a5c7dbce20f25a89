"""Distributions as an installer leaves them, made in a directory for one test."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

GROUP = "mycelia_storage.engines"


class Site:
    """A directory of modules and distributions, which this process finds."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def install(
        self, name: str, engines: Mapping[str, str], modules: Mapping[str, str] | None = None, *, version: str = "1.2"
    ) -> None:
        """A distribution with entry points, `{"myengine": "my_module:MyEngine"}`, and the source of its modules."""
        information = self.directory / f"{name.replace('-', '_')}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        points = "".join(f"{engine} = {value}\n" for engine, value in engines.items())
        (information / "entry_points.txt").write_text(f"[{GROUP}]\n{points}")
        for module, source in (modules or {}).items():
            (self.directory / f"{module}.py").write_text(source)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty one; the modules that were imported from it are forgotten."""
    directory = tmp_path / "site-packages"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    yield Site(directory)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(directory)):
            del sys.modules[name]
