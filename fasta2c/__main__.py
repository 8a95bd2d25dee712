"""Runs the command line as `python -m fasta2c`."""

import sys

from fasta2c.cli import main

if __name__ == "__main__":
    sys.exit(main())
