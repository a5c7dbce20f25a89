"""The file system that a file stands on, and whether a database should.

Called by `doctor`.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

MOUNTS: Final = "/proc/self/mountinfo"

NETWORK: Final = frozenset((
    *("9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "glusterfs", "gpfs", "lustre", "ncpfs"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "prl_fs", "pvfs2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"),
    *("fuse.ceph", "fuse.davfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs"),
    *("fuse.sshfs", "fuse.vmhgfs-fuse"),
))  # fmt: skip
VOLATILE: Final = frozenset(("tmpfs", "ramfs"))
LAYERED: Final = frozenset(("overlay", "aufs"))

# Octal escapes of white space and backslashes.
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mounted file system."""

    place: str
    kind: str
    is_read_only: bool


def mount_of(path: str, text: str | None = None) -> Mount | None:
    """Where a path stands; None on a system that does not tell. `text` is what /proc/self/mountinfo says."""
    if text is None:
        try:
            with open(MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except OSError:
            return None
    found: Mount | None = None
    for line in text.splitlines():
        mount = _mount(line)
        # The last one that fits: what is mounted later lies over what was there.
        if (
            mount is not None
            and _is_below(path, mount.place)
            and (found is None or len(mount.place) >= len(found.place))
        ):
            found = mount
    return found


def _mount(line: str) -> Mount | None:
    """`36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/sda1 rw`: options stand before and behind the dash."""
    before, dash, behind = line.partition(" - ")
    fields, others = before.split(" "), behind.split(" ")
    if not dash or len(fields) < 6 or len(others) < 3:
        return None
    place = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
    options = {*fields[5].split(","), *others[2].split(",")}
    return Mount(place, others[0], "ro" in options)


def _is_below(path: str, place: str) -> bool:
    return place in ("/", path) or path.startswith(place.rstrip(os.sep) + os.sep)
