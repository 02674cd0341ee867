"""A FUSE file system that shows every version as a read-only image. pyfuse3 and trio appear only in this package."""
