"""Restore a version, and verify the target."""
