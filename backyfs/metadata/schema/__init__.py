"""Create the tables, and upgrade older ones, including those of backy2."""
