"""Make the tables, and upgrade them, those of backy2 included."""
