"""The command line: parse, call one library function, render its report.

Imports are late on purpose: `backyfs --help` loads neither SQLAlchemy nor pyfuse3.
"""

from backyfs.cli.main import main

__all__ = ["main"]
