"""`python -m dnabert_rm …`, and `deepspeed --module dnabert_rm pretrain …` where there is no checkout."""

import sys

from dnabert_rm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
