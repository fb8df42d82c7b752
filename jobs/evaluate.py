"""Measure the bundles of a run and write the report.

ray job submit --working-dir . -- python jobs/evaluate.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
