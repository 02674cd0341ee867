"""Connect to the database: engines, tables, and code that all queries share."""
