"""Score candidates for every user of a run.

ray job submit --working-dir . -- python jobs/score_population.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["score", *sys.argv[1:]]))
