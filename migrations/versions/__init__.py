"""One module a revision. They never change once released."""
