"""Split and lay out the comparisons of a run.

ray job submit --working-dir . -- python jobs/prepare.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["prepare", *sys.argv[1:]]))
