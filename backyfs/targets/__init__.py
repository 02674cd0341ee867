"""Targets: what a restore writes."""
