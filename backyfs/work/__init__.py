"""Run a command: its job, its progress, and tasks in worker threads."""
