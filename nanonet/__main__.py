"""python -m nanonet: the command line."""

import sys

from nanonet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
