"""What can be read as an image."""
