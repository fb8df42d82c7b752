"""Train the method of a run.

ray job submit --working-dir . -- python jobs/train.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
