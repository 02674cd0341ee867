"""The alembic environment and its revisions: how the schema came to be, step by step."""
