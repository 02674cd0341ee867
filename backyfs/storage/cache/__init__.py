"""A disk cache in front of a storage.

It holds copies of blobs as they are in the storage, and nothing else: no keys, no names, no state. Every process can be
killed at any moment, and any file can be removed, truncated or overwritten: that costs a request to the storage.
"""
