"""Block maps."""
