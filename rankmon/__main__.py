"""`python -m rankmon`, which is the `rankmon` command; nothing lives here."""

import sys

from rankmon.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
