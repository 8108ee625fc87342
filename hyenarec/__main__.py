"""`python -m hyenarec` is the command `hyenarec`."""

import sys

from hyenarec.cli import main

sys.exit(main())
