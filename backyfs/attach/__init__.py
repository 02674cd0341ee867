"""Attach a version: mount the file systems in it, and undo all of that."""
