"""Store the metadata: what is backed up, and in which blobs. This is the only package that contains SQL.

Functions take a connection from `Database.read` or `Database.write` and run in its transaction. Errors of SQLAlchemy
become DatabaseError where the transaction ends.
"""
