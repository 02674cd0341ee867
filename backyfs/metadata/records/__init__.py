"""Rows of versions, blobs, jobs and the repository."""
