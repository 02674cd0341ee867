"""Keep counts and blobs right: garbage, checks, replaced and migrated blobs."""
