"""Sources: what a backup reads."""
