"""The program ``moorage``. Never: anything but handing over to the command line."""

from __future__ import annotations

import sys

from moorage.cli.main import main as run_command


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
