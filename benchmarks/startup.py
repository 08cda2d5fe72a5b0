"""Start-up of the commands against `python -c pass`, in turn.

    python benchmarks/startup.py [--quick]

Prints medians over interleaved rounds, in milliseconds, and the difference to plain Python;
keeps the last result in benchmarks/results/startup.json.
"""

import argparse
import statistics
import subprocess
import sys
import time

import results

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import depthcut": [sys.executable, "-c", "import depthcut"],
    "depthcut --help": [sys.executable, "-m", "depthcut", "--help"],
    "depthcut slice --help": [sys.executable, "-m", "depthcut", "slice", "--help"],
    "depthcut recipe": [sys.executable, "-m", "depthcut", "recipe"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 rounds instead of 20")
    rounds = 5 if parser.parse_args().quick else 20
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for measured in [False] + [True] * rounds:
        for name, command in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if measured:
                times[name].append(time.perf_counter() - began)
    base = statistics.median(times["python -c pass"])
    rows = {
        name: {
            "median_seconds": round(statistics.median(each), 4),
            "least_seconds": round(min(each), 4),
            "most_seconds": round(max(each), 4),
            "ratio": round(statistics.median(each) / base, 1),
        }
        for name, each in times.items()
    }
    print(f"{'command':<24}{'median':>10}{'least':>10}{'most':>10}{'ratio':>8}")
    for name, row in rows.items():
        milliseconds = [f"{row[key] * 1e3:>7.0f} ms" for key in list(row)[:3]]
        print(f"{name:<24}{''.join(milliseconds)}{row['ratio']:>8}")
    results.keep("startup", {"rounds": rounds, "rows": rows})


if __name__ == "__main__":
    main()
