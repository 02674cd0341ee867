"""What this host has mounted, its loop devices, and who uses them. Needs neither pyfuse3 nor a repository."""
