"""Distinguish blobs from other objects in a bucket by their names.

A blob has no suffix and no directory, so the object of another program could pass for a blob without a row, and a full
cleanup would delete it. Therefore only names in the forms that backyfs and backy2 choose at random count:

    backyfs, backy2 before 2.7.1    32 hexadecimal digits in lower case
    backy2 since 2.7.1              10 such digits, and a short UUID: 22 letters and digits without 0, 1, I, O and l
"""

from __future__ import annotations

import re

_BLOB = re.compile("[0-9a-f]{32}|[0-9a-f]{10}[2-9A-HJ-NP-Za-km-z]{22}")


def is_name_of_blob(path: str) -> bool:
    """Return whether a name has one of these forms."""
    return _BLOB.fullmatch(path) is not None
