"""Command line of the bench."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console

from launch.environment import ALLOCATOR
from tests.bench import saving, second_start, watching
from tests.bench.kernels.case import COLUMNS as KERNEL_COLUMNS
from tests.bench.kernels.measure import kernel_rows
from tests.bench.memory import memory_rows
from tests.bench.pairs import Pairs, Plan
from tests.bench.products import Share, profile_both
from tests.bench.sizes import FULL, QUICK, Sizes
from tests.bench.table import COLUMNS, Row, machine, seconds, show, spread, to_markdown
from tests.bench.training import Layout, compare, compare_precisions, layouts
from tests.ranks import run_ranks

TIMEOUT_S = 1200.0
KERNELS = "kernels"


def timed_row(what: str, peer: str, pairs: Pairs) -> Row:
    """Return the row of a paired timing."""
    return Row(what, peer, seconds(pairs.ours_s), seconds(pairs.theirs_s), spread(pairs.ratios, pairs.ratio))


def training_rows(layout: Layout, sizes: Sizes, plan: Plan) -> list[Row]:
    """Compare one layout's training step with its peer's."""
    pairs = run_ranks(layout.world, compare, layout, sizes, plan, timeout=TIMEOUT_S)[0]
    return [timed_row(f"training step, {layout.name}", layout.peer, pairs)]


def precision_rows(layout: Layout, sizes: Sizes, plan: Plan) -> list[Row]:
    """Compare bf16 with fp32."""
    pairs = run_ranks(layout.world, compare_precisions, layout, sizes, plan, timeout=TIMEOUT_S)[0]
    return [timed_row(f"training step in bf16 with fp32 masters, {layout.name}", "Trimaran in fp32", pairs)]


def products_rows(layout: Layout, sizes: Sizes) -> list[Row]:
    """Compare how much of the step is matrix products and attention."""
    ours, theirs = run_ranks(layout.world, profile_both, layout, sizes, timeout=TIMEOUT_S)[0]

    def text(share: Share) -> str:
        return f"{share.products:.0%} + {share.attention:.0%}"

    return [Row(f"matrix products + attention in the step, {layout.name}", layout.peer, text(ours), text(theirs), "")]


def start_rows(documents: int, sizes: Sizes, plan: Plan) -> list[Row]:
    """Compare a second start on a large corpus with one on a small corpus."""
    return [
        timed_row(f"opening {documents:,} documents to first batch, {state}", f"{second_start.FEW:,} documents", pairs)
        for state, pairs in second_start.start(documents, sizes, plan).items()
    ]


def save_rows(layout: Layout, sizes: Sizes, plan: Plan) -> list[Row]:
    """Compare the stall of a save with a copy of the state, and a step during the writing with one alone."""
    stall, writing = (
        run_ranks(layout.world, body, layout, sizes, plan, timeout=TIMEOUT_S)[0]
        for body in (saving.stall, saving.steps_while_writing)
    )
    return [
        timed_row(f"stall of a checkpoint, {layout.name}", "one copy_ of the state", stall),
        timed_row(f"training step while a checkpoint is written, {layout.name}", "the step alone", writing),
    ]


def watched_rows(layout: Layout, sizes: Sizes, plan: Plan) -> list[Row]:
    """Compare healthy steps with everything of stability on and off."""
    pairs = run_ranks(layout.world, watching.watched, layout, sizes, plan, timeout=TIMEOUT_S)[0]
    return [timed_row(f"a healthy step, watched, {layout.name}", "not watched", pairs)]


def measurements(sizes: Sizes, plan: Plan, documents: int) -> Mapping[str, Callable[[], list[Row]]]:
    """Return every measurement by name, in the order of the table."""
    compared = layouts(sizes.samples)
    one = compared[0]
    return {layout.key: partial(training_rows, layout, sizes, plan) for layout in compared} | {
        "bf16": partial(precision_rows, one, sizes, plan),
        "memory": partial(memory_rows, one, sizes),
        "products": partial(products_rows, one, sizes),
        "save": partial(save_rows, one, sizes, plan),
        "watched": partial(watched_rows, one, sizes, plan),
        "start": partial(start_rows, documents, sizes, plan),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, few samples: shows that it works, no more")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measurements to make (default: all)")
    parser.add_argument("--pairs", type=int, default=9, help="samples of each side")
    parser.add_argument("--steps", type=int, default=1, help="training steps per sample; one lasts seconds")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table there")
    args = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch.profiler prints its internal events otherwise
    for key, value in ALLOCATOR.items():  # both sides run as our launcher starts ranks: peers gain by it too
        os.environ.setdefault(key, value)
    plan = Plan(warmup=1, pairs=2, steps=1) if args.quick else Plan(warmup=1, pairs=args.pairs, steps=args.steps)
    known = measurements(QUICK, plan, 10**5) if args.quick else measurements(FULL, plan, 10**8)
    unknown = set(args.only or ()) - set(known) - {KERNELS}
    if unknown:
        parser.error(f"--only {', '.join(sorted(unknown))} is unknown; choose from: {', '.join((*known, KERNELS))}")
    wanted = args.only or (*known, KERNELS)
    console, rows, tables = Console(), list[Row](), list[str]()
    title = machine() + (", --quick: no measurement" if args.quick else "")
    for name in (name for name in known if name in wanted):
        with console.status(name):
            found = known[name]()
        for row in found:
            console.print(*row.cells, sep="  ", highlight=False)
        rows += found
    if rows:
        show(title, COLUMNS, rows, console)
        tables.append(to_markdown(title, COLUMNS, rows))
    if KERNELS in wanted:
        with console.status(KERNELS):
            found = kernel_rows(plan)
        show(title, KERNEL_COLUMNS, found, console)
        tables.append(to_markdown(title, KERNEL_COLUMNS, found))
    if args.markdown:
        args.markdown.write_text("\n".join(tables))


if __name__ == "__main__":
    main()
