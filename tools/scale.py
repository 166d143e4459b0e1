"""What clusters of growing size cost, in virtual time: a table and a plot (docs/performance.md, "Growing").

usage: tools/scale.py [--nodes 10 30 100 300 1000] [--per-node 100] [--out FILE] [--svg FILE]

Each size runs in a process of its own, one after the other, so that its peak of memory is its own. The largest size
of the default takes about half an hour and 4 GB; each size is appended to ``--out`` as soon as it is known, and one
that is there already is not run again.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from moorage.testing.scale import Cost, Size, measure

STORIES = {"storm": "#1a7f37", "loss": "#bf5700", "restart": "#0969da"}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT, LABEL = 640, 360, 60, 44, 30, 110, 14


def run_apart(size: Size) -> list[Cost]:
    """Measure in another process."""
    command = [sys.executable, __file__, "--one", f"{size.nodes}x{size.per_node}"]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return msgspec.json.decode(told, type=list[Cost])


def per_work(cost: Cost) -> float:
    """CPU milliseconds for each piece of work; after a restart all volumes are loaded and all nodes come again."""
    work = cost.changes + (cost.volumes if cost.story == "restart" else 0)
    return (cost.cpu_s - cost.idle_cpu_s) / work * 1e3


def print_table(costs: Iterable[Cost]) -> None:
    """As Markdown."""
    print(
        "| Story | nodes | volumes | uses begun or ended | queue, most | calls a change | commits a change "
        "| bytes to agents a change | virtual s | CPU s | CPU ms a change | peak MB |"
    )
    print("|" + "---|" * 12)
    for story in STORIES:
        for c in (c for c in costs if c.story == story):
            cpu_s, sent_bytes = c.cpu_s - c.idle_cpu_s, c.sent_bytes - c.idle_sent_bytes
            figures = (
                f"{c.nodes:,}", f"{c.volumes:,}", f"{c.changes:,}", f"{c.queue_max:,}", f"{c.calls / c.changes:.2f}",
                f"{c.commits / c.changes:.2f}", f"{sent_bytes / c.changes:,.0f}", f"{c.virtual_s:.1f}",
                f"{cpu_s:.1f}", f"{cpu_s / c.changes * 1e3:.2f}", f"{c.memory_mb:,}",
            )  # fmt: skip
            print(f"| {story} | {' | '.join(figures)} |")


def draw(costs: Sequence[Cost]) -> str:
    """CPU seconds of each story over volumes, both logarithmic: what grows linearly runs along the dashed lines."""
    shown = [c for c in costs if c.story in STORIES]
    values = [max(0.01, c.cpu_s - c.idle_cpu_s) for c in shown]
    low_x, high_x = (math.log10(f(c.volumes for c in shown)) for f in (min, max))
    low_y, high_y = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x_of(volumes: float) -> float:
        return LEFT + (math.log10(volumes) - low_x) / max(high_x - low_x, 1e-9) * (WIDTH - LEFT - RIGHT)

    def y_of(cpu_s: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(cpu_s) - low_y) / max(high_y - low_y, 1) * (HEIGHT - BOTTOM - TOP)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="CPU seconds over volumes">',
        "<style>svg{background:#fff}text{fill:#333}.g{stroke:#ddd}.r{stroke:#999;stroke-dasharray:4 4}"
        "@media(prefers-color-scheme:dark){svg{background:#0d1117}text{fill:#ccc}.g{stroke:#30363d}}</style>",
        f'<text x="{LEFT}" y="18">CPU seconds of the whole process over volumes; dashed: linear</text>',
    ]
    for power in range(low_y, high_y + 1):
        y = y_of(10.0**power)
        parts.append(f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for volumes in sorted({c.volumes for c in shown}):
        parts.append(f'<text x="{x_of(volumes):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{volumes:,}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">volumes</text>')
    ends: list[tuple[float, str]] = []
    for story, colour in STORIES.items():
        found = sorted((c.volumes, max(0.01, c.cpu_s - c.idle_cpu_s)) for c in shown if c.story == story)
        (first, first_s), (last, last_s) = found[0], found[-1]
        end_s = first_s * last / first
        parts.append(
            f'<line class="r" x1="{x_of(first):.1f}" y1="{y_of(first_s):.1f}" x2="{x_of(last):.1f}" '
            f'y2="{y_of(end_s):.1f}"/>'
        )
        points = " ".join(f"{x_of(v):.1f},{y_of(s):.1f}" for v, s in found)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        parts += [f'<circle cx="{x_of(v):.1f}" cy="{y_of(s):.1f}" r="3" fill="{colour}"/>' for v, s in found]
        ends.append((y_of(last_s) + 4, story))
    low = -math.inf
    for y, story in sorted(ends):
        low = max(y, low + LABEL)
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{low:.1f}" style="fill:{STORIES[story]}">{story}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Measure what is not known yet; print and draw."""
    parser = argparse.ArgumentParser(description="what clusters of growing size cost, in virtual time")
    parser.add_argument("--nodes", type=int, nargs="*", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--per-node", type=int, default=100, help="volumes that each node uses")
    parser.add_argument("--out", default="", help="file with what was measured, a line a story")
    parser.add_argument("--svg", default="", help="file for the plot")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        nodes, _, per_node = args.one.partition("x")
        sys.stdout.buffer.write(msgspec.json.encode(measure(Size(nodes=int(nodes), per_node=int(per_node)))))
        return
    out = Path(args.out) if args.out else None
    lines = out.read_bytes().splitlines() if out is not None and out.exists() else []
    costs = [msgspec.json.decode(line, type=Cost) for line in lines]
    for nodes in args.nodes:
        if any((c.nodes, c.volumes) == (nodes, nodes * args.per_node) for c in costs):
            continue
        found = run_apart(Size(nodes=nodes, per_node=args.per_node))
        costs += found
        for cost in found:
            cpu_s = cost.cpu_s - cost.idle_cpu_s
            print(f"{nodes} nodes, {cost.story}: {cpu_s:.2f} s of CPU, {per_work(cost):.2f} ms each", file=sys.stderr)
        if out is not None:
            with out.open("ab") as file:
                file.writelines(msgspec.json.encode(cost) + b"\n" for cost in found)
    print_table(costs)
    if args.svg:
        Path(args.svg).write_text(draw(costs))


if __name__ == "__main__":
    main()
