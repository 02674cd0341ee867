"""The catalog: a copy of the metadata in the storage, sufficient to rebuild the database.

`store` reads and writes its objects. The other modules are pure: they turn records into bytes, and bytes into records
or a CatalogError. Nothing that is read is trusted, because anyone who can write to the storage can write anything.
Numbers are checked before memory is allocated for them, and texts before they become names. The layouts are described
in `docs/reference/format.md`.
"""
