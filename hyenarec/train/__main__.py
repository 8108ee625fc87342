"""`python -m hyenarec.train` is the command `hyenarec train`."""

import sys

from hyenarec.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
