"""Find, mark and repair damage."""
