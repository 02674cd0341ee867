"""Back up a source."""
