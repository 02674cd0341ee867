"""The metadata: what is backed up, and in which blobs it lies. The only place that knows SQL.

Functions take a connection of `Database.read` or `Database.write` and belong to its transaction. Foreign
errors become DatabaseError where the transaction ends.
"""
