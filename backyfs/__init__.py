"""Back up block devices into a repository, and mount every backup version as a read-only image.

The library: its functions return values or raise the errors of `backyfs.errors`. Nothing below this
package prints, exits or parses arguments, except `backyfs.cli`.
"""

__version__ = "0.1.0"
