"""What the commands do: each module is one operation, called with an open repository, returning a report."""
