"""The papers' claims, each measured, judged and recorded: one command, resumable.

    python jobs/benchmarks/claims.py --data FOLDER
    python jobs/benchmarks/claims.py speed parameters
    python jobs/benchmarks/claims.py --table

The first three claims compare what `methods.py` recorded: run it before, with the same `--work` and
`--size`. Trials and fitted models are kept below `--work`; run again, only what is new is measured, and what
is timed is timed again. `--size quick` is a rehearsal: its figures stay below `--work` and mean little.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from papers import collapse, ingredients, leads, mirror, parameters, prototypes, speed, uncertainty
from papers.claim import RESULTS, Bench, Claim, check, markdown_table, read, text_table
from populations import data_folder

from raypref.errors import RayprefError

CLAIMS: tuple[Claim, ...] = tuple(
    sorted(
        (
            claim
            for group in (leads, uncertainty, ingredients, speed, parameters, collapse, prototypes, mirror)
            for claim in group.CLAIMS
        ),
        key=lambda claim: claim.number,
    )
)


def main(arguments: list[str] | None = None) -> int:
    """Check the claims that are named, or all, and print what was found."""
    names = [claim.name for claim in CLAIMS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(names)}")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder to keep trials in")
    parser.add_argument("--data", type=Path, help="folder of real data; default: RAYPREF_REAL_DATA")
    parser.add_argument("--size", choices=("quick", "default"), default="default")
    parser.add_argument("--processes", type=int, default=2, help="trials at a time")
    parser.add_argument("--table", action="store_true", help="print the table of what is recorded")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(names):
        parser.error(f"no claim {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [claim for claim in CLAIMS if not given.names or claim.name in given.names]
    results = RESULTS if given.size == "default" else given.work / "results"
    if given.table:
        print(markdown_table(read(chosen, results)))
        return 0
    bench = Bench(given.work, given.data or data_folder(), results, given.size, given.processes)
    failed = False
    for claim in chosen:
        try:
            print(text_table({claim: check(claim, bench)}), flush=True)
        except RayprefError as error:
            print(f"claims: {claim.name}: {error}", file=sys.stderr)
            failed = True
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
