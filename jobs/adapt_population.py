"""Infer the vector of every user of a run.

ray job submit --working-dir . -- python jobs/adapt_population.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["adapt", *sys.argv[1:]]))
