"""Find, mark and repair what is damaged."""
