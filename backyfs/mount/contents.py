"""The parts of one mount that its FUSE handlers use, put together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from backyfs.blocks import PieceLoader
from backyfs.geometry import block_count
from backyfs.images.image import PageCache
from backyfs.mount.blockfacts import BlockFacts
from backyfs.mount.cache import PieceCache
from backyfs.mount.damage import DamageLog
from backyfs.mount.images import Images
from backyfs.mount.live import LiveTree
from backyfs.mount.marker import DamageMarker
from backyfs.mount.partitions import Partitions
from backyfs.mount.pools import make_pools
from backyfs.mount.readers import Readers
from backyfs.mount.statistics import Statistics

if TYPE_CHECKING:
    from backyfs.model import Blob
    from backyfs.mount.overlay import OverlayDirectory, Scratch
    from backyfs.mount.settings import Settings
    from backyfs.repository import Repository
    from backyfs.work.job import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The parts of one mount. Used by the tasks of one trio event loop."""

    repository_uid: str
    tree: LiveTree          # the names
    images: Images          # the bytes
    partitions: Partitions
    facts: BlockFacts
    damage: DamageLog
    cache: PieceCache
    statistics: Statistics

    @classmethod
    def of(
        cls, repository: Repository, job: Job, settings: Settings, overlays: OverlayDirectory | Scratch | None = None
    ) -> Self:
        """Show a repository. With `overlays`, images can be written to."""
        pools = make_pools(
            workers=settings.workers or repository.width.workers, patience_s=settings.patience_s
        )
        pages = PageCache()

        def find_moved(blob: Blob) -> Blob | None:  # called in threads that load
            moved = repository.blocks.find_moved(blob)
            if moved is not None:
                pages.clear()  # block maps that were read before name the old blobs
            return moved

        loader = PieceLoader(replace(repository.blocks, find_moved=find_moved))
        cache = PieceCache(loader.load, settings.cache_bytes, wanted=pools.wanted, ahead=pools.ahead)
        readers = Readers(repository, job, cache=cache, pages=pages, questions=pools.questions)
        ahead = block_count(
            settings.read_ahead_limit_bytes(repository.blocks.storage.round_trip_s), repository.block_size
        )
        images = Images(readers, overlays, pools.layers, read_ahead_blocks=ahead)
        damage = DamageLog(DamageMarker(repository, job))
        return cls(
            repository_uid=repository.uid,
            tree=LiveTree(repository.database, settings.selection, pools.questions, settings.freshness),
            images=images,
            partitions=Partitions(images, pools.tables),
            facts=BlockFacts(repository.database, repository.block_size, pools.questions),
            damage=damage,
            cache=cache,
            statistics=Statistics(readers=readers, cache=cache, damage=damage, pools=pools),
        )
