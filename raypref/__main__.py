"""`python -m raypref` is `raypref`."""

import sys

from raypref.cli import main

sys.exit(main())
