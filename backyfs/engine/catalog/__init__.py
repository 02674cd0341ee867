"""Keep the catalog in the storage, check it, and recover from it."""
