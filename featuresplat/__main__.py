"""``python -m featuresplat``."""

import sys

from featuresplat.cli import main

if __name__ == "__main__":
    sys.exit(main())
