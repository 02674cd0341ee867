"""Work that a command does: its job, progress, and tasks in worker threads."""
