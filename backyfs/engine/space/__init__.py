"""Make room: delete what no version uses."""
