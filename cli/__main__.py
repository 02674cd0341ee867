"""`python -m backyfs.cli`: how the program starts itself for the background."""

from backyfs.cli import main

main()
