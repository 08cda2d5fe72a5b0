"""Mutated checkpoints, by the hundred thousand: each is sliced rightly or refused in one line.

    python -m benchmarks.fuzz [--cases 100000] [--seed 0] [--keep FOLDER]

Every case has its number as its seed. It fails if anything but a DepthcutError comes out, if the
result is not what plain Python makes of the same files, if something is left behind, or if it takes
more than a second of processor time or 200 MB. Prints counts by what was mutated and what came of
it; a run of 100,000 keeps its result in benchmarks/results/fuzz.json. Failed cases are written to
FOLDER, in the form of tests/fuzz/corpus.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks import results
from tests.fuzz.cases import KINDS, TooSlowError, drawn, failure_of, limited_memory, run
from tests.fuzz.corpus import write_case

ALL = 100_000
_MOST_SHOWN = 40


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=ALL)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where failed cases go")
    options = parser.parse_args()
    outcomes: Counter[tuple[str, str]] = Counter()
    failures: Counter[str] = Counter()
    slowest, slowest_case = 0.0, 0
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        place = Path(folder, "case")
        for number in range(3):  # what is imported late counts for no case
            run_one(options.seed, number, place)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        with limited_memory():
            for number in range(options.first, options.first + options.cases):
                before = time.process_time()
                kind, outcome, failure = run_one(options.seed, number, place)
                outcomes[kind, outcome] += 1
                spent = time.process_time() - before
                slowest, slowest_case = max((slowest, slowest_case), (spent, number))
                if failure:
                    failures[failure] += 1
                    if failures[failure] == 1:
                        print(f"case {number} ({kind}): {failure}", flush=True)
                        if options.keep:
                            write_case(options.keep, f"{number}", drawn(options.seed, number))
        seconds = time.monotonic() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    _show(outcomes, failures)
    print(
        f"{options.cases:,} cases in {seconds:,.0f} s ({options.cases / seconds:,.0f}/s), "
        f"{sum(failures.values())} failed; the slowest ({slowest_case}) took {slowest:.2f} s of "
        f"processor time with its judging; the process grew by {grown / 1e6:.0f} MB"
    )
    if options.cases >= ALL:
        counts: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        for (kind, outcome), count in sorted(outcomes.items()):
            counts[kind][outcome] = count
        results.keep(
            "fuzz",
            {
                "cases": options.cases,
                "seed": options.seed,
                "seconds": round(seconds, 1),
                "failed": sum(failures.values()),
                "slowest_seconds": round(slowest, 3),
                "grown_bytes": grown,
                "outcomes": counts,
            },
        )
    return 1 if failures else 0


def run_one(seed: int, number: int, place: Path) -> tuple[str, str, str]:
    """Kind, outcome, and what failed ('': nothing)."""
    case = drawn(seed, number)
    try:
        return case.kind, run(case, place), ""
    except (Exception, TooSlowError) as error:
        return case.kind, "failed", failure_of(error)


def _show(outcomes: Counter[tuple[str, str]], failures: Counter[str]) -> None:
    columns = sorted({outcome for _, outcome in outcomes})
    print(f"{'mutated':12}" + "".join(f"{name:>20}" for name in columns))
    for kind in KINDS:
        counts = (outcomes[kind, name] for name in columns)
        print(f"{kind:12}" + "".join(f"{count:20,}" for count in counts))
    for failure, count in failures.most_common(_MOST_SHOWN):
        print(f"{count:8,}  {failure}")


if __name__ == "__main__":
    os.nice(10)
    sys.exit(main())
