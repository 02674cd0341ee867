"""A private Ceph cluster, as small as possible, and the object store in front of it."""

from __future__ import annotations

import base64
import os
import struct
import time
import uuid
from pathlib import Path
from typing import ClassVar

from tests.support.services.objectstore import USERS, ObjectStoreServer
from tests.support.services.server import find_program, free_ports

_MOST_BYTES = 4 << 30  # of all objects
_CONFIG = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_port}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
keyring = {directory}/keyring
run dir = {directory}
admin socket =
log file = {directory}/$name.log
crash dir = {directory}
heartbeat file = {directory}/heartbeat
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
[mon]
mon data = {directory}/mon
mon allow pool size one = true
mon warn on pool no redundancy = false
mon data avail crit = 1
mon data avail warn = 2
auth allow insecure global id reclaim = false
paxos propose interval = 0.05
[osd]
osd data = {directory}/osd
osd objectstore = memstore
memstore device bytes = {most_bytes}
osd max object name len = 460
osd max object namespace len = 64
osd op num shards = 2
osd mclock skip benchmark = true
[client]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw dns name =
rgw rados pool pg num min = 4
"""
_CAPABILITIES = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *", "mgr": "allow profile osd"},
}


class RadosgwServer(ObjectStoreServer):
    """One monitor, one OSD that keeps everything in memory, and radosgw."""

    name: ClassVar = "radosgw"

    def start(self) -> None:
        """Make a cluster and start the server."""
        mon_port, self.port = free_ports(2)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._configure(fsid, mon_port)
        os.mkdir(f"{self.directory}/mon")
        os.mkdir(f"{self.directory}/osd")
        keyring, map_file = f"{self.directory}/keyring", f"{self.directory}/monmap"
        self._run_ceph("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", map_file)
        self._run_ceph("ceph-mon", "-i", "a", "--mkfs", "--monmap", map_file, "--keyring", keyring)
        self._serve_ceph("ceph-mon", "-i", "a", "-f")
        self._run_ceph("ceph", "osd", "new", osd)
        self._run_ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._serve_ceph("ceph-osd", "-i", "0", "-f")
        self._serve_ceph("radosgw", "-n", "client.admin", "-f")
        for name, user in USERS.items():
            self._run_ceph(
                "radosgw-admin", "user", "create", f"--uid={name}", f"--display-name={name}",
                f"--access-key={user.access_key}", f"--secret={user.secret_key}",
            )  # fmt: skip
        self.wait_until(self.answers)

    def _configure(self, fsid: str, mon_port: int) -> None:
        config = _CONFIG.format(
            directory=self.directory, fsid=fsid, mon_port=mon_port, port=self.port, most_bytes=_MOST_BYTES
        )
        Path(self.directory, "ceph.conf").write_text(config)
        Path(self.directory, "keyring").write_text("".join(_key(*entry) for entry in _CAPABILITIES.items()))

    def _run_ceph(self, program: str, *arguments: str) -> None:
        self.run([find_program(program), *arguments], CEPH_CONF=f"{self.directory}/ceph.conf")

    def _serve_ceph(self, program: str, *arguments: str) -> None:
        self.serve([find_program(program), *arguments], CEPH_CONF=f"{self.directory}/ceph.conf")


def _key(name: str, capabilities: dict[str, str]) -> str:
    # kind (2) = AES | when it was made: seconds (4), nanoseconds (4) | length (2) | key
    key = struct.pack("<HIIH", 1, int(time.time()), 0, 16) + os.urandom(16)
    lines = [f"[{name}]", f"key = {base64.b64encode(key).decode()}"]
    return "\n".join([*lines, *(f'caps {what} = "{caps}"' for what, caps in capabilities.items()), ""])
