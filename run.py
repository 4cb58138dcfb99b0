"""The one entry point of esc-lab: `python run.py --help` lists stages, groups and commands worth copying."""

import sys

from esc_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
