"""What the catalog in the storage has to be told."""
