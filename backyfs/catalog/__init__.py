"""The catalog: a copy of the metadata that is kept in the storage, enough to rebuild the database.

Pure, except for `place`: what an object of it holds becomes bytes here, and bytes become what they hold, or a
CatalogError. Nothing that is read is trusted: anybody who can write to the storage can have written anything. Numbers
are compared with their limits before memory is taken for them, and texts before they become names. The layouts
are in `docs/reference/format.md`.
"""
