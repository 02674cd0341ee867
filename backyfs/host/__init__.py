"""The mounts and loop devices of this host, and their users. Needs neither pyfuse3 nor a repository."""
