"""Entry point of `python -m dnabert_rm`."""

import sys

from dnabert_rm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
