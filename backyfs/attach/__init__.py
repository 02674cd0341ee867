"""Attach a version: mount the file systems in it, and undo that later."""
