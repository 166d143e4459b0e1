"""Run seeds of the simulated cluster: `tools/simulate.py --seeds 10000 --jobs 2`, or one: `--seed 4711 -v`.

Prints the seeds with violations, each with the end of its history, and a line with runs, violations and time.
Exit code 1 when a promise was broken. The same seed is the same run, on every machine with the same Python.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moorage.testing.sim_world import Result

# Sets of texts are walked in an order that depends on this; so a run is repeatable only with it.
HASH_SEED = "0"
TAIL_SHOWN = 60


def main() -> int:
    """Run what the command line says."""
    from moorage.testing.sim_defects import PLANS

    args = _parse(sorted(PLANS))
    begun_s = time.monotonic()
    seeds = [args.seed] if args.seed is not None else list(range(args.start, args.start + args.seeds))
    broken: list[Result] = []
    totals: Counter[str] = Counter()
    for result in _run_all(seeds, jobs=args.jobs, plan=args.plant):
        totals.update(runs=1, events=result.events, commits=result.commits, calls=result.calls)
        totals["virtual_s"] += round(result.virtual_s)
        if result.violations:
            broken.append(result)
            _show(result, tail=len(result.tail) if args.verbose else TAIL_SHOWN)
            if len(broken) >= args.stop_after:
                break
        elif args.verbose:
            print(f"seed {result.seed}: kept every promise; {result.events} events, digest {result.digest}")
    found = Counter(result.violations[0].validator for result in broken)
    took_s = time.monotonic() - begun_s
    print(
        f"simulation: {totals['runs']} runs, {len(broken)} with violations, {took_s:.1f} s; "
        f"{totals['commits']} commits, {totals['calls']} driver calls, {totals['virtual_s']} s of virtual time"
    )
    for validator, count in found.most_common():
        print(f"  {validator}: {count}, such as seed {next(r.seed for r in broken if _first(r) == validator)}")
    return 1 if broken else 0


def _parse(defects: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run seeds of the simulated cluster.")
    parser.add_argument("--seeds", type=int, default=300, help="how many seeds (default 300)")
    parser.add_argument("--start", type=int, default=1, help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    parser.add_argument("--plant", choices=defects, help="plant this defect, to see that it is found")
    parser.add_argument("--stop-after", type=int, default=20, help="end after so many seeds with violations")
    parser.add_argument("-v", "--verbose", action="store_true", help="the whole history of a seed with violations")
    return parser.parse_args()


def _run_all(seeds: list[int], *, jobs: int, plan: str | None) -> Iterator[Result]:
    from moorage.testing.sim_defects import run_planted

    if jobs < 2 or len(seeds) < 2:
        yield from map(run_planted, seeds, repeat(plan))
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            # One at a time: with what is enough found, nothing is left but what is being run.
            yield from pool.map(run_planted, seeds, repeat(plan))
        finally:
            pool.shutdown(cancel_futures=True)


def _first(result: Result) -> str:
    return result.violations[0].validator


def _show(result: Result, *, tail: int) -> None:
    print(f"seed {result.seed}: {len(result.violations)} violations, digest {result.digest}")
    for line in result.tail[-tail:]:
        print(f"  {line}")
    for violation in result.violations:
        print(f"  VIOLATED {violation}")
    print(f"  again: tools/simulate.py --seed {result.seed} -v")


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": HASH_SEED})
    sys.exit(main())
