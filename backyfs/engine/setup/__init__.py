"""Create, check and upgrade a repository."""
