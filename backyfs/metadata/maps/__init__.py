"""Store and read block maps."""
