"""Loop devices are found only by their own paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.host.loops import find_loop, list_loops, with_backing_files

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_with_the_name_of_a_loop_device_is_a_file(tmp_path: Path) -> None:
    # If it were taken for the device that it backs, the chain of backing files would never end.
    for name in ["loop0", *(loop.device.rpartition("/")[2] for loop in list_loops())]:
        assert find_loop(str(tmp_path / name)) is None
        assert with_backing_files(str(tmp_path / name)) == (str(tmp_path / name),)
