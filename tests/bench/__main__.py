"""Command line of the bench."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from tests.bench import saving, second_start
from tests.bench.pairs import Plan
from tests.bench.products import profile_both
from tests.bench.sizes import FULL, QUICK, Sizes
from tests.bench.table import Row, machine, seconds, show, spread, to_markdown
from tests.bench.training import Layout, compare, layouts
from tests.ranks import run_ranks

TIMEOUT_S = 1200.0


def training_row(layout: Layout, sizes: Sizes, plan: Plan) -> Row:
    """Compare one layout's training step with its peer's."""
    pairs = run_ranks(layout.world, compare, layout, sizes, plan, timeout=TIMEOUT_S)[0]
    return Row(
        f"training step, {layout.name}", seconds(pairs.ours_s), layout.peer, seconds(pairs.theirs_s),
        spread(pairs.ratios, pairs.ratio),
    )  # fmt: skip


def products_row(layout: Layout, sizes: Sizes) -> Row:
    """Compare how much of the step is matrix products and attention."""
    ours, theirs = run_ranks(layout.world, profile_both, layout, sizes, timeout=TIMEOUT_S)[0]
    return Row(
        f"share of matrix products and attention, {layout.name}",
        f"{ours.total:.0%} ({ours.products:.0%} + {ours.attention:.0%})", layout.peer,
        f"{theirs.total:.0%} ({theirs.products:.0%} + {theirs.attention:.0%})", "",
    )  # fmt: skip


def measurements(sizes: Sizes, plan: Plan, quick: bool) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """Yield every measurement by name, in the order of the table."""
    found = layouts(sizes.samples)
    for layout in found:
        yield layout.name, lambda layout=layout: [training_row(layout, sizes, plan)]
    yield "products", lambda: [products_row(found[0], sizes)]
    yield "start", lambda: [second_start.measure_rows(10**5 if quick else 10**8)]
    yield "save", lambda: saving.measure_rows(sizes, plan)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: shows that it works, no more")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements to make (default: all)")
    parser.add_argument("--pairs", type=int, default=9, help="samples of each side")
    parser.add_argument("--steps", type=int, default=2, help="training steps per sample")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    sizes = QUICK if args.quick else FULL
    plan = Plan(warmup=1, pairs=2, steps=1) if args.quick else Plan(warmup=2, pairs=args.pairs, steps=args.steps)
    known = dict(measurements(sizes, plan, args.quick))
    unknown = set(args.only or ()) - set(known)
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))} is unknown; choose from: {', '.join(known)}")
    console, rows = Console(), []
    title = machine()
    for name, run in known.items():
        if not args.only or name in args.only:
            with console.status(name):
                rows += run()
            show(title, rows[-1:], console)
    show(title, rows, console)
    if args.markdown:
        args.markdown.write_text(to_markdown(title, rows))


if __name__ == "__main__":
    main()
