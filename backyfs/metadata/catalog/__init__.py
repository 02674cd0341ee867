"""Record which changes the catalog in the storage lacks."""
