"""``python -m linnet`` is ``linnet``."""

import sys

from linnet.cli import main

sys.exit(main())
