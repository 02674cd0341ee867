"""The image of a version: its bytes, read from blocks and blobs, and its partitions."""
