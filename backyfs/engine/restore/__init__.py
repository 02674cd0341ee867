"""Restore a version, and verify what was restored."""
