"""Free space: delete data that no version uses."""
