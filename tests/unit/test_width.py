"""How many threads a command uses, by the kind of storage and the size of blocks."""

from __future__ import annotations

import pytest

from backyfs.storage.protocol import Traits
from backyfs.work.width import Width, processors

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(("block_size", "blocks"), [(4 * KIB, 256), (64 * KIB, 64), (4 * MIB, 1), (64 * MIB, 1)])
def test_a_local_storage_keeps_the_processors_busy(block_size: int, blocks: int) -> None:
    assert Width.of(Traits(), block_size) == Width(workers=processors() + 1, blocks=blocks)


@pytest.mark.parametrize("block_size", [4 * KIB, 64 * KIB, 4 * MIB, 64 * MIB])
def test_a_storage_behind_a_network_gets_a_task_for_each_request(block_size: int) -> None:
    width = Width.of(Traits(requests=128), block_size)
    assert width.blocks == 1
    assert processors() < width.workers <= 128
    assert width.workers * block_size <= 64 * MIB or width.workers == processors() + 1


@pytest.mark.parametrize("traits", [Traits(), Traits(requests=128)])
def test_the_number_of_threads_can_be_set(traits: Traits) -> None:
    assert Width.of(traits, 4 * MIB, workers=1).workers == 1
