"""Objects in a bucket of an object store that speaks S3: blobs under their uids, as in backy2, and named objects."""

from backyfs.storage.bucket.connection import open_bucket
from backyfs.storage.bucket.diagnosis import find_setting
from backyfs.storage.bucket.newbucket import check_new_bucket

__all__ = ["check_new_bucket", "find_setting", "open_bucket"]
