"""``python -m nodemanager_trellis`` is the command ``trellis``."""

import sys

from nodemanager_trellis.cli import main

if __name__ == "__main__":
    sys.exit(main())
