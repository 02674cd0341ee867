"""Reports as the values of the published schema: what `--json` and `-m` print, and what hooks and other programs get.

One module for each command, each pure: `as_object` or `as_rows` turns a report of the library into fields, by their
names in docs/reference/output.schema.json. `COLUMNS` are the fields of tables and of `-m`, in order.
"""
