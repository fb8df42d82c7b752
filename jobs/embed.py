"""Embed the texts of a run.

ray job submit --working-dir . -- python jobs/embed.py -c run.yaml
"""

import sys

from raypref.cli import main

sys.exit(main(["embed", *sys.argv[1:]]))
