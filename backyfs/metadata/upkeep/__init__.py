"""Keep counts and blobs in order: garbage, checks, replaced and migrated blobs."""
