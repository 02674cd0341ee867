"""The image of a version: from blocks and blobs to bytes, and what partitions lie in it."""
