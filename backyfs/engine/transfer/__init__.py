"""Export and import versions, and copy databases."""
