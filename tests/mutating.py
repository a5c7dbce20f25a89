"""Files of stores, changed at random from a seed, and what a store makes of each; a program for a process of its own.

Called by `test_mutated_files.py`: a crash or an endless loop ends this process and no other. For each seed one line is
printed before it begins, so that who reads them knows which file it was, and one with what came of it.

    python tests/mutating.py TEMPLATES FIRST COUNT
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import battery

from mycelia_storage import Storage, StorageError, open_storage

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_SECONDS = 30  # for one file; on an idle machine the slowest takes a tenth of that
MOST_MEMORY = 4 * 1024**3
_WAL_HEADER = 32
_FRAME_HEADER = 24

# ---- templates


def _document(number: int) -> dict[str, Any]:
    return {"n": number, "t": "x" * 50, "deep": {"list": [number, "a", None, 1.5]}}


def _fill(store: Storage) -> None:
    battery.fill(store)
    store.set_many({f"large{number}": ["y" * 3000 * number] for number in range(1, 6)})
    store.set_many({f"n{number:03}": _document(number) for number in range(150)}, namespace="more", metadata={"a": 1})
    store.create_index("n", "-deep.list[0]", namespace="more", unique=True)
    store.create_index("$updated_at", namespace=None)
    store.set("soon", 1, ttl=0.001, namespace="more")
    store.optimize()


def make_templates(where: Path, checksums: bool | None = None) -> None:
    """One store of each kind, as it lies on the disk while its process has it open, or was killed."""
    more: Any = {} if checksums is None else {"checksums": checksums}
    for name, wal_mode, keeps_wal in (("plain", True, False), ("log", True, True), ("journal", False, False)):
        path = where / f"{name}.db"
        with open_storage(path, wal_mode=wal_mode, **more) as store:
            _fill(store)
            if keeps_wal:
                store.set_many({f"late{number}": _document(number) for number in range(40)})
                store.delete("k3")
                for end in ("", "-wal"):
                    shutil.copyfile(f"{path}{end}", where / f"kept.db{end}")
        if keeps_wal:
            for end in ("", "-wal"):
                os.replace(where / f"kept.db{end}", f"{path}{end}")
    if checksums is None:
        _make_old(where / "old.db")
        _make_small(where / "small.db")


def _make_old(path: Path) -> None:
    with open_storage(path) as store:
        battery.fill(store)
        store.touch("expiring", ttl=None)
        for index in store.list_indexes():
            store.drop_index(index.name)
        store.migrate(to=1)


def _make_small(path: Path) -> None:
    import apsw

    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA page_size=512; PRAGMA auto_vacuum=1; CREATE TABLE t (a); DROP TABLE t")
    connection.close()
    with open_storage(path) as store:
        _fill(store)


# ---- mutations


def flip(content: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def overwrite(content: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(content))
    size = min(chance.choice((1, 4, 16, 256, 4096)), len(content) - start)
    kind = chance.randrange(3)
    content[start : start + size] = chance.randbytes(size) if kind == 2 else (b"\0", b"\xff")[kind] * size


def cut(content: bytearray, chance: random.Random) -> None:
    del content[chance.randrange(1, len(content)) :]


def extend(content: bytearray, chance: random.Random) -> None:
    content += chance.choice((b"\0", b"\xff", bytes(content[:4096]))) * chance.randrange(1, 9000)
    del content[2_000_000:]


def swap_pages(content: bytearray, chance: random.Random) -> None:
    size = _page_size(content)
    one, other = (size * chance.randrange(max(1, len(content) // size)) for _ in range(2))
    content[one : one + size], content[other : other + size] = content[other : other + size], content[one : one + size]


def copy_page(content: bytearray, chance: random.Random) -> None:
    size = _page_size(content)
    one, other = (size * chance.randrange(max(1, len(content) // size)) for _ in range(2))
    content[one : one + size] = content[other : other + size]


def change_header(content: bytearray, chance: random.Random) -> None:
    place, size = chance.choice(
        ((16, 2), (18, 1), (19, 1), (20, 1), (21, 1), (24, 4), (28, 4), (32, 4), (36, 4), (40, 4), (44, 4), (48, 4),
         (52, 4), (56, 4), (60, 4), (64, 4), (68, 4), (92, 4), (96, 4), (100, 8))
    )  # fmt: skip
    content[place : place + size] = _number(chance, size)


def change_page(content: bytearray, chance: random.Random) -> None:
    """A field of the header of a page, or a pointer to one of its cells."""
    size = _page_size(content)
    page = size * chance.randrange(max(1, len(content) // size))
    start = page + (100 if page == 0 else 0)
    place, width = chance.choice(((0, 1), (1, 2), (3, 2), (5, 2), (7, 1), (8, 4), (8 + 2 * chance.randrange(20), 2)))
    content[start + place : start + place + width] = _number(chance, width)


def change_cell(content: bytearray, chance: random.Random) -> None:
    """Varints where the lengths and types of columns stand."""
    size = _page_size(content)
    page = size * chance.randrange(max(1, len(content) // size))
    start = page + (100 if page == 0 else 0)
    pointer = start + 8 + 2 * chance.randrange(20)
    cell = page + int.from_bytes(content[pointer : pointer + 2], "big")
    place = cell + chance.randrange(16)
    if place < len(content):
        value = chance.choice((b"\xff" * 8 + b"\x7f", b"\x81\x00", b"\0", b"\x0c", b"\x0d", b"\x07", b"\x08", b"\x0a"))
        content[place : place + len(value)] = value


def change_text(content: bytearray, chance: random.Random) -> None:
    """What stands in rows and in the schema."""
    texts = (
        b'{"n"',
        b"default",
        b"CREATE",
        b"namespace",
        b"storage_",
        b"xxxx",
        b'"t":',
        b"$.",
        b"json_",
        b"more",
        b"n1",
    )
    text = chance.choice(texts)
    found = [at for at in range(len(content)) if content.startswith(text, at)] if text in content else []
    if found:
        at = chance.choice(found)
        other = chance.choice((b"[" * 4, b"\xff\xfe\xfd", b"\0\0\0\0", b"NULL", b"'", b"}{}{", chance.choice(texts)))
        content[at : at + len(other)] = other


def _number(chance: random.Random, size: int) -> bytes:
    return chance.choice(
        (
            b"\xff" * size,
            b"\0" * size,
            b"\x7f" + b"\xff" * (size - 1),
            b"\0" * (size - 1) + b"\x01",
            chance.randbytes(size),
        )
    )


def _page_size(content: bytearray) -> int:
    size = int.from_bytes(content[16:18], "big")
    return size if size in (512, 1024, 2048, 4096, 8192) else 4096


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip, flip, flip, overwrite, overwrite, cut, extend, swap_pages, copy_page, change_header, change_header,
    change_page, change_page, change_cell, change_cell, change_text, change_text,
)  # fmt: skip


def mutate_log(content: bytearray, chance: random.Random) -> None:
    """A page in the -wal, whose checksums are made anew, so that SQLite takes it."""
    if len(content) < _WAL_HEADER + _FRAME_HEADER or chance.random() < 0.4:
        chance.choice((flip, overwrite, cut, extend))(content, chance)
        return
    size = int.from_bytes(content[8:12], "big")
    frames = range(_WAL_HEADER, len(content) - size - _FRAME_HEADER + 1, size + _FRAME_HEADER)
    frame = chance.choice(frames)
    if chance.random() < 0.3:
        place, width = chance.choice(((0, 4), (4, 4)))  # the number of its page; the size of the file after a commit
        content[frame + place : frame + place + width] = _number(chance, width)
    else:
        page = content[frame + _FRAME_HEADER : frame + _FRAME_HEADER + size]
        chance.choice((flip, overwrite, change_page, change_cell, change_text))(page, chance)
        content[frame + _FRAME_HEADER : frame + _FRAME_HEADER + size] = page[:size].ljust(size, b"\0")
    _seal(content, frames, size)


def _seal(content: bytearray, frames: range, size: int) -> None:
    order = ">" if content[3] & 1 else "<"
    sums = _sum(content[:24], order, (0, 0))
    content[24:32] = struct.pack(">II", *sums)
    for frame in frames:
        sums = _sum(content[frame : frame + 8], order, sums)
        sums = _sum(content[frame + _FRAME_HEADER : frame + _FRAME_HEADER + size], order, sums)
        content[frame + 16 : frame + 24] = struct.pack(">II", *sums)


def _sum(data: bytes | bytearray, order: str, start: tuple[int, int]) -> tuple[int, int]:
    one, other = start
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for index in range(0, len(words), 2):
        one = (one + words[index] + other) & 0xFFFFFFFF
        other = (other + words[index + 1] + one) & 0xFFFFFFFF
    return one, other


def mutate(template: Path, place: Path, chance: random.Random, *, only_rot: bool = False) -> None:
    """Copy a template with its log, and change one of the two."""
    content = bytearray(template.read_bytes())
    log = Path(f"{template}-wal")
    logged = bytearray(log.read_bytes()) if log.exists() else None
    if only_rot:
        chance.choice((flip, overwrite))(content, chance)
    elif logged is not None and chance.random() < 0.6:
        mutate_log(logged, chance)
    else:
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chance.choice(MUTATIONS)(content, chance)
    place.write_bytes(content)
    if logged is not None:
        Path(f"{place}-wal").write_bytes(logged)


# ---- judging


def outcome_of(path: Path, chance: random.Random) -> str:
    """In a word, what a store makes of a file. Raises what no caller should see."""
    options: Any = {"wal_mode": chance.random() < 0.8, "busy_timeout": 0.2, "read_only": chance.random() < 0.1}
    try:
        store = open_storage(path, **options)
    except StorageError as error:
        return f"refused: {error.code}"
    found: dict[str, Any] = {}
    try:
        found |= battery.run(store, battery.READS)
        if not options["read_only"]:
            found |= battery.run(store, battery.WRITES)
    finally:
        try:
            store.close()
        except StorageError as error:  # what is in the log could not be written back
            found["close"] = error
    errors = sorted({answer.code for answer in found.values() if isinstance(answer, StorageError)})
    return f"opened, errors: {' '.join(errors)}" if errors else "opened, no error"


def answers_of(path: Path, checksums: bool | None) -> dict[str, Any] | str:
    """Every document that a store gives of a file, and errors for the others."""
    found: dict[str, Any] = {}
    try:
        with open_storage(path, read_only=True, checksums=checksums) as store:
            for namespace in ("default", "more", "other"):
                keys = [key for name, key in EXPECTED if name == namespace]
                for key in keys:
                    try:
                        found[f"{namespace} {key}"] = store.get(key, namespace=namespace)
                    except StorageError:
                        continue
                try:
                    for entry in store.scan(namespace=namespace):
                        found[f"{namespace} {entry.key}, by a scan"] = entry.value
                except StorageError:
                    continue
    except StorageError as error:
        return f"refused: {error.code}"
    return found


EXPECTED: dict[tuple[str, str], Any] = {}


def expect(template: Path) -> None:
    """What a whole file of a template holds."""
    EXPECTED.clear()
    with open_storage(template, read_only=True) as store:
        for namespace in store.list_namespaces():
            EXPECTED.update({(namespace, entry.key): entry.value for entry in store.scan(namespace=namespace)})


def rot_outcome(path: Path, checksums: bool | None) -> str:
    """Whether what is given of a file with checksums is what was written."""
    found = answers_of(path, checksums)
    if isinstance(found, str):
        return found
    expected: dict[str, Any] = {}
    for (namespace, key), value in EXPECTED.items():
        expected[f"{namespace} {key}"] = expected[f"{namespace} {key}, by a scan"] = value
    wrong = [name for name, value in found.items() if name not in expected or expected[name] != value]
    if wrong:
        raise AssertionError(f"wrong data: {wrong[:5]}")
    return "opened, all there" if found == expected else "opened, errors"


def main() -> None:
    """Judge the files of some seeds, and print what came of each."""
    templates, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    only_rot = len(sys.argv) > 4
    checksums = True if sys.argv[4:] == ["rot with checksums"] else None
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    names = sorted(templates.glob("*.db"))
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "store.db"
        for seed in range(first, first + count):
            template = names[seed % len(names)]
            print(json.dumps([seed]), flush=True)
            chance = random.Random(seed)
            mutate(template, path, chance, only_rot=only_rot)
            signal.alarm(LONGEST_SECONDS)
            try:
                if only_rot:
                    expect(template)
                outcome = rot_outcome(path, checksums) if only_rot else outcome_of(path, chance)
            except Exception:  # noqa: BLE001  whatever it is, it is what this looks for
                outcome = f"FAILED {traceback.format_exc()}"
            signal.alarm(0)
            print(json.dumps([seed, template.stem, outcome]), flush=True)
            for end in ("", "-wal", "-shm", "-journal"):
                Path(f"{path}{end}").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
