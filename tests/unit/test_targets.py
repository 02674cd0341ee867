"""Behaviour of single kinds of target beyond the common contract: continued files, and streams out of order."""

from __future__ import annotations

import os
import random
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from backyfs.errors import InterruptedByUser, ReaderGoneError, TargetError
from backyfs.targets.file import FileTarget
from backyfs.targets.stream import StreamTarget
from tests.support.images import random_bytes, random_image, sparse_image
from tests.unit.test_sources import loop_device, open_files

PIECE = 4096
PIECES = 600
TAIL = 1000
SIZE = PIECES * PIECE + TAIL
IMAGE = random_bytes(SIZE, 5)
PATIENCE_S = 30


# Continued files


def test_a_continued_file_keeps_only_its_beginning(tmp_path):
    path = random_image(tmp_path / "target", 10 * PIECE, 9)
    target = FileTarget(str(path), 6 * PIECE, replace=False, kept_bytes=2 * PIECE)
    target.write(3 * PIECE, IMAGE[:PIECE])
    target.finish()
    target.close()
    old = random_bytes(10 * PIECE, 9)
    assert path.read_bytes() == old[: 2 * PIECE] + bytes(PIECE) + IMAGE[:PIECE] + bytes(2 * PIECE)


@pytest.mark.parametrize("size", [0, PIECE, SIZE, SIZE + PIECE])
def test_a_continued_file_gets_the_right_size(tmp_path, size):
    path = random_image(tmp_path / "target", size, 9)
    FileTarget(str(path), SIZE, replace=False, kept_bytes=SIZE).close()
    assert path.read_bytes() == (random_bytes(size, 9) + bytes(SIZE))[:SIZE]


def test_holes_of_a_target_are_not_read(tmp_path):
    path = sparse_image(tmp_path / "target", 1 << 40, {1 << 39: b"x"})
    target = FileTarget(str(path), 1 << 40, replace=False, kept_bytes=1 << 40)
    assert target.is_zeros(0, 1 << 39)
    assert target.is_zeros((1 << 39) + PIECE, (1 << 39) - PIECE)
    assert not target.is_zeros(0, 1 << 40)
    target.close()


@pytest.mark.parametrize("what", ["missing", "dangling"])
def test_a_target_to_continue_must_exist(tmp_path, what):
    path = tmp_path / what
    if what == "dangling":
        path.symlink_to(tmp_path / "nothing")
    before = open_files()
    with pytest.raises(TargetError, match=f"{path} does not exist; name the target of an earlier restore"):
        FileTarget(str(path), SIZE, replace=True, kept_bytes=0)
    assert not (tmp_path / "nothing").exists()
    assert open_files() == before


def test_a_device_can_be_continued_without_force_unless_it_is_mounted(tmp_path):
    image = sparse_image(tmp_path / "image", 8 << 20, {})
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    (tmp_path / "mnt").mkdir()
    with loop_device(image) as name:
        FileTarget(name, SIZE, replace=False, kept_bytes=SIZE).close()
        subprocess.run(["mount", name, str(tmp_path / "mnt")], check=True)
        try:
            with pytest.raises(TargetError, match="is in use; unmount it"):
                FileTarget(name, SIZE, replace=True, kept_bytes=SIZE)
        finally:
            subprocess.run(["umount", str(tmp_path / "mnt")], check=True)


# Streams


def test_pieces_from_threads_in_any_order_are_written_in_order(tmp_path):
    chance = random.Random(3)
    zeros = {index for index in range(PIECES + 1) if chance.random() < 0.3}
    expected = bytearray(IMAGE)
    with (tmp_path / "target").open("wb") as file:
        target = StreamTarget(file.fileno(), stop=lambda: False)

        def put(index):
            start, stop = index * PIECE, min(SIZE, (index + 1) * PIECE)
            if index in zeros:
                chance.choice((target.write_zeros, target.leave))(start, stop - start)
                expected[start:stop] = bytes(stop - start)
            else:
                target.write(start, IMAGE[start:stop])

        with ThreadPoolExecutor(4) as threads:
            for one in [threads.submit(put, index) for index in range(PIECES + 1)]:
                one.result(PATIENCE_S)
        target.finish()
        target.close()
    assert (tmp_path / "target").read_bytes() == expected


def test_waiting_threads_get_an_error_if_the_reader_is_gone():
    reader, writer = os.pipe()
    os.close(reader)
    target = StreamTarget(writer, stop=lambda: False)
    with ThreadPoolExecutor(3) as threads:
        done = [threads.submit(target.write, index * PIECE, IMAGE[:PIECE]) for index in (2, 3, 4)]
        target.write(0, IMAGE[:PIECE])  # and the next one never arrives
        for one in done:
            assert isinstance(one.exception(PATIENCE_S), ReaderGoneError)
    target.close()
    os.close(writer)


def test_a_stream_accepts_no_more_than_it_can_buffer():
    reader, writer = os.pipe()
    taken = []
    stopped = threading.Event()
    target = StreamTarget(writer, stop=stopped.is_set)

    def write():
        for index in range(100):
            target.write(index << 20, bytes(1 << 20))
            taken.append(index)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(write)
        threading.Timer(0.5, stopped.set).start()
        assert isinstance(done.exception(PATIENCE_S), InterruptedByUser)
    assert len(taken) <= 9  # MiB
    target.close()
    os.close(reader)
    for thread in threading.enumerate():
        if thread.name == "backyfs-stream":
            thread.join(PATIENCE_S)
    os.close(writer)


