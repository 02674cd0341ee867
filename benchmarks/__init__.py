"""Measure backyfs against references that are measured in the same run. Not part of the installed package."""
