"""What can be written as an image."""
