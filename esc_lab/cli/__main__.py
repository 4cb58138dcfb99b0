"""`python -m esc_lab.cli`: the command where neither `esc-lab` nor run.py is at hand."""

import sys

from esc_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
