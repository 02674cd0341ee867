"""`python -m backyfs.cli`: the program, by an interpreter of your choice."""

from backyfs.cli import main

main()
