"""Make a repository, check it, and upgrade it."""
