"""`python -m rankmon`: run the `rankmon` command."""

import sys

from rankmon.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
