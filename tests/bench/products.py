"""How much of a training step goes into matrix products (attention included), on one rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from tests.bench.sizes import Sizes, draw_window
from tests.bench.training import Layout, Side, make_sides

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
ATTENTION = ("aten::_scaled_dot_product_", "trimaran::attention")
WARMUP, PROFILED = 2, 3


@dataclass(frozen=True)
class Share:
    """Parts of a step's time: `products` in mm, addmm and bmm, `attention` in its kernels."""

    products: float
    attention: float

    @property
    def total(self) -> float:
        return self.products + self.attention


def profile_both(rank: int, world: int, layout: Layout, sizes: Sizes) -> tuple[Share, Share]:
    """Body of a rank: profile some steps of Trimaran and of its peer."""
    torch.set_num_threads(layout.threads)
    ours, theirs = make_sides(layout, sizes)
    return profile_side(ours, sizes), profile_side(theirs, sizes)


def profile_side(side: Side, sizes: Sizes) -> Share:
    """Return the shares over a few steps, by self CPU time of the operators against the steps' whole time."""
    window = draw_window(sizes, 0)
    for _ in range(WARMUP):
        side.step(window)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            with record_function("step"):
                side.step(window)
    averages = profiler.key_averages()
    whole = sum(event.cpu_time_total for event in averages if event.key == "step")
    products = sum(event.self_cpu_time_total for event in averages if event.key in PRODUCTS)
    attention = sum(event.self_cpu_time_total for event in averages if event.key.startswith(ATTENTION))
    return Share(products / whole, attention / whole)
