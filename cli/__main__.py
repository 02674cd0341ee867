"""Run the program with `python -m backyfs.cli`."""

from backyfs.cli import main

main()
