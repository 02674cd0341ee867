"""What the service manager is notified of, and when, on a real socket."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backyfs.cli.notify import notify
from backyfs.host.mounttable import mount_at
from tests.support.images import random_image
from tests.support.program import BACKYFS, PATIENCE_S, clear, why_not_mount
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def manager(address: str | bytes) -> Iterator[socket.socket]:
    """Listen as a service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address)
        channel.settimeout(PATIENCE_S)
        yield channel


def test_a_state_reaches_the_socket_at_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with manager(f"{tmp_path}/notify") as channel:
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        assert notify("READY=1") is True
        assert channel.recv(100) == b"READY=1"


def test_a_state_reaches_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"backyfs-tests-{os.getpid()}"
    with manager(f"\0{name}") as channel:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("STOPPING=1") is True
        assert channel.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_socket_nobody_is_notified(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert notify("READY=1") is False


@pytest.mark.parametrize(
    "address", ["/nonexistent/notify", "/etc/hostname", "relative", "@nobody-listens", "/" + "x" * 200]
)
def test_a_dead_socket_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with caplog.at_level(logging.WARNING, "backyfs"):
        assert notify("READY=1") is False
    assert caplog.messages[0].startswith("cannot notify the service manager of READY: ")


def test_a_mount_in_the_foreground_is_ready_once_it_can_be_read(tmp_path: Path) -> None:
    reason = why_not_mount()
    if reason is not None:
        pytest.skip(reason)
    config_file = make_repository(tmp_path / "repository")
    image = random_image(tmp_path / "image", 3 * BLOCK + 5)
    with opened(config_file) as repository:
        back_up(repository, image)
    target = tmp_path / "target"
    target.mkdir()
    environ = {**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/notify"}
    # With setpriv, the kernel ends the mount if the test is killed.
    command = ["setpriv", "--pdeathsig=TERM", "--", BACKYFS, "-c", str(config_file), "mount", "--foreground"]
    with (
        manager(f"{tmp_path}/notify") as channel,
        subprocess.Popen([*command, str(target)], env=environ, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            assert channel.recv(100) == b"READY=1"
            assert (target / "by_name/disk/latest/data").read_bytes() == image.read_bytes()
            process.send_signal(signal.SIGTERM)
            assert channel.recv(100) == b"STOPPING=1"
            assert process.wait(PATIENCE_S) == 0
            assert mount_at(str(target)) is None
        finally:
            process.kill()
            clear(target)
