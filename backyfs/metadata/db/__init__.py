"""The database: engines, tables, and what all queries share."""
