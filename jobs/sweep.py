"""Try many settings of a run side by side.

ray job submit --working-dir . -- python jobs/sweep.py -c sweep.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["sweep", *sys.argv[1:]]))
