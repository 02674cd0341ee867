"""Every version as a read-only image in a FUSE file system. pyfuse3 and trio appear only here."""
