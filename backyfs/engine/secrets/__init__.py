"""Keys of the repository and its blocks: change, rotate, re-seal."""
