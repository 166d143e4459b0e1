#!/usr/bin/env python3
"""Measure what hung driver calls cost the others, in virtual time: p99 of the good uses with and without the hung ones.

    tools/hung_calls.py                             # 999 good and 1 hung, for each step that may hang
    tools/hung_calls.py --good 200 --hung 1 40 --step attach stage --history 300

Exit code 1 when a ratio of one hung call is above the bar.
"""

from __future__ import annotations

import argparse
import sys
import time

from moorage.testing.hung_calls import STEPS, Load, measure, p99

BAR = 1.1


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--good", type=int, default=999, metavar="N", help="volumes whose calls end")
    parser.add_argument("--hung", type=int, nargs="+", default=[1], metavar="N", help="volumes whose calls do not")
    parser.add_argument("--step", nargs="+", default=sorted(STEPS), choices=sorted(STEPS), help="the step that hangs")
    parser.add_argument("--history", type=float, default=0.0, metavar="S", help="how long they have hung before")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    began_s = time.monotonic()
    alone = measure(Load(good=args.good, seed=args.seed))
    start_s, stop_s = p99(alone.start_s), p99(alone.stop_s)
    print(f"{args.good} good alone: p99 start {start_s:.2f} s, stop {stop_s:.2f} s of virtual time", flush=True)
    is_missed = False
    for step in args.step:
        for hung in args.hung:
            found = measure(Load(good=args.good, hung=hung, step=step, history_s=args.history, seed=args.seed))
            ratios = p99(found.start_s) / start_s, p99(found.stop_s) / stop_s
            print(
                f"{step:8} {hung:4} hung: p99 start x {ratios[0]:.3f}, stop x {ratios[1]:.3f}; "
                f"at most {found.calls_max} calls at a time",
                flush=True,
            )
            is_missed = is_missed or (hung == 1 and max(ratios) > BAR)
    print(f"{time.monotonic() - began_s:.0f} s")
    return 1 if is_missed else 0


if __name__ == "__main__":
    sys.exit(main())
