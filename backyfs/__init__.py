"""Back up block devices into a repository, and mount every backup version as a read-only image.

This is a library: its functions return values or raise the errors in `backyfs.errors`. Only `backyfs.cli`
prints, exits or parses arguments.
"""

__version__ = "0.1.0"
