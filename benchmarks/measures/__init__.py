"""One module per subject. Importing this package registers every measure, in the order of these imports."""

from benchmarks.measures import (  # noqa: I001  the order of the report
    backup as backup,
    restore as restore,
    start as start,
    small_blocks as small_blocks,
    memory as memory,
    hints as hints,
    limits as limits,
    metadata as metadata,
    mount as mount,
    encryption as encryption,
    catalog as catalog,
    cleanup as cleanup,
    objectstore as objectstore,
    random_image as random_image,
    peers as peers,
    mount_peers as mount_peers,
)
