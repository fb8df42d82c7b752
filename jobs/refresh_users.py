"""Infer all users of a store anew for a bundle, before or after the service swaps to it.

ray job submit --working-dir . -- python jobs/refresh_users.py --store postgresql://… BUNDLE
"""

import sys

from raypref.cli import main

sys.exit(main(["users", "refresh", *sys.argv[1:]]))
