"""The alembic environment and the revisions of the schema."""
