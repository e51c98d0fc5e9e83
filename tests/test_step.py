"""A training step beyond parity: precision, skipped updates, and any rank of a large CUDA world on fake tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.fake_cuda import real_tensors, run_fake_cuda
from tests.layouts import GPT, LLAMA, VOCAB, assemble, make_batch, make_config, micro_batches, train_layout
from tests.ranks import run_ranks

DRY_GPT = {**GPT, "hidden_dropout": 0.0, "attention_dropout": 0.0, "embedding_dropout": 0.0}
BIG_WORLD = {"tp": 8, "pp": 8, "dp": 8}


def fake_step(rank: int, dtype: str, schedule: str, chunks: int, prevention: dict[str, Any]) -> dict[str, Any]:
    """Run two whole training steps of one rank of 512 on fake CUDA tensors, which cannot be read by the host."""
    from engine.data.batch import MicroBatch
    from engine.device import Device
    from engine.mesh import Mesh
    from engine.step import Stepper

    config = make_config(
        model={**LLAMA, "layers": 16, "hidden": 64, "heads": 8, "kv_heads": 4, "ffn": 128, "tied_embeddings": True},
        parallel={"tp": 8, "pp": 8, "sequence_parallel": True, "schedule": schedule, "virtual_stages": chunks,
                  "recompute": "full"},
        precision={"dtype": dtype},
        train={"global_batch": 64, "micro_batch": 1},
        ops={"backend": "reference"},
        optim=prevention,
    )  # fmt: skip
    config.model.qk_norm, config.train.z_loss = True, 1e-4
    device = Device(torch.device("cuda", rank % 8), "fake")
    with real_tensors():
        mesh = Mesh(**BIG_WORLD, cp=1, device=device)
    stepper = Stepper(config, 64, mesh, device)
    stepper.initialise()
    window = torch.zeros(1, 17, dtype=torch.int64)
    micros = [MicroBatch(window[:, :-1], window[:, 1:], None, None, None, torch.tensor([m])) for m in range(8)]
    results = [stepper.run(step, micros, 1e-3, loss_scale=2.0) for step in range(2)]
    return {
        "devices": sorted({str(t.device) for r in results for t in (r.loss, r.grad_norm)}),
        "params": str(stepper.buckets.flat_params.device) + " " + str(stepper.buckets.flat_params.dtype),
        "grads": str(stepper.buckets.flat_grads.dtype),
        "layers": sum(len(chunk.blocks) for chunk in stepper.chunks),
    }


@pytest.mark.parametrize("rank", [0, 37, 300, 511])
@pytest.mark.parametrize(
    ("dtype", "schedule", "chunks", "prevention"),
    [
        ("bf16", "1f1b", 1, {"clip_mode": "zclip", "beta2_schedule": "palm"}),
        ("fp16", "interleaved", 2, {"clip_mode": "adagc", "update_clip": 1.0, "max_update_ratio": 0.1}),
    ],
)
def test_any_rank_of_512_runs_whole_steps_on_fake_cuda(
    rank: int, dtype: str, schedule: str, chunks: int, prevention: dict[str, Any]
) -> None:
    told = run_fake_cuda("tests.test_step:fake_step", rank, dtype, schedule, chunks, prevention, rank=rank, world=512)
    assert told["devices"] == [f"cuda:{rank % 8}"]
    assert told["params"] == f"cuda:{rank % 8} torch.{'bfloat16' if dtype == 'bf16' else 'float16'}"
    assert told["grads"] == "torch.float32"
    assert told["layers"] == 2


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_follows_fp32(dtype: str) -> None:
    """Same model, 20 steps: the loss curve of a 16-bit run on tp=2 x dp=2 stays near the fp32 one."""
    curves = {}
    for kind in ("fp32", dtype):
        config = make_config(
            model=LLAMA, precision={"dtype": kind, "loss_scale": 1024.0}, parallel={"tp": 2, "sequence_parallel": True}
        )
        results = run_ranks(4, train_layout, config, 20)
        assemble(results)
        curves[kind] = torch.tensor(results[0]["losses"])
    assert (curves[dtype] / curves["fp32"] - 1).abs().max() < 0.03
    assert not torch.equal(curves[dtype], curves["fp32"])


def gradients(rank: int, world: int, dtype: str, micro_batch: int, model: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the whole gradient by name after one backward pass over text in which one token is everywhere."""
    from tests.layouts import layout_stepper

    config = make_config(
        model=model, precision={"dtype": dtype}, data={"seq_len": 32}, optim={"clip": 0.0},
        train={"global_batch": 32, "micro_batch": micro_batch},
    )  # fmt: skip
    stepper = layout_stepper(config)
    batch = make_batch(config, 0)
    batch["tokens_bs"] = batch["tokens_bs"] * (batch["tokens_bs"] % 10 == 0)
    stepper.run(0, micro_batches(config, batch, 0, 1), lr=0.0)
    return {
        item.piece.name: bucket.grads[item.start : item.stop].double().numpy()
        for bucket in stepper.buckets.buckets
        for item in bucket.placed
    }


@pytest.mark.parametrize("model", [LLAMA, DRY_GPT], ids=["llama", "gpt"])
def test_bf16_gradients_are_summed_in_fp32(model: dict[str, Any]) -> None:
    """How many samples are summed at once does not matter, and the sum is near the float64 one."""
    truth = run_ranks(1, gradients, "fp64", 4, model)[0]
    told = {size: run_ranks(1, gradients, "bf16", size, model)[0] for size in (1, 32)}
    for name, exact in truth.items():
        if np.linalg.norm(exact) < 1e-6:  # the bias of keys has no effect
            continue
        size = np.linalg.norm(exact)
        assert np.linalg.norm(told[1][name] - told[32][name]) < 1e-4 * size, name
        assert np.linalg.norm(told[32][name] - exact) < 0.1 * size, name


def widened_copies(rank: int, world: int) -> bool:
    """Train in bf16 and say whether the float32 copies that products use are the parameters at every moment."""
    from tests.layouts import layout_stepper

    config = make_config(model=LLAMA, precision={"dtype": "bf16"})
    stepper = layout_stepper(config)

    def is_fresh() -> bool:
        weights = [weight for chunk in stepper.chunks for weight in chunk.parameters()]
        return all(torch.equal(weight.widened, weight.float()) for weight in weights)  # type: ignore[attr-defined]

    fresh = [is_fresh()]
    micros = micro_batches(config, make_batch(config, 0), stepper.mesh.dp.rank, stepper.mesh.dp.size)
    for step in range(2):
        before = stepper.buckets.flat_params.clone()
        stepper.run(step, micros, 1e-2)
        fresh += [is_fresh(), not torch.equal(before, stepper.buckets.flat_params)]
    stepper.optimizer.set_masters(lambda piece: torch.ones(piece.shape))
    return all([*fresh, is_fresh()])


def test_products_never_use_stale_weights() -> None:
    assert run_ranks(2, widened_copies) == [True, True]


def damped_masters(rank: int, world: int) -> list[bool]:
    """Train in bf16 with damped updates; say after each step whether parameters are the masters, rounded."""
    from tests.layouts import layout_stepper

    config = make_config(model=LLAMA, precision={"dtype": "bf16"}, optim={"update_clip": 0.5})
    stepper = layout_stepper(config)
    micros = micro_batches(config, make_batch(config, 0), stepper.mesh.dp.rank, stepper.mesh.dp.size)
    rounded = []
    for step in range(2):
        stepper.run(step, micros, 1e-2)
        shards = stepper.optimizer.shards
        rounded.append(all(torch.equal(s.bucket.param_shard(), s.master.bfloat16()) for s in shards))
    return rounded


def test_damped_updates_reach_rounded_parameters() -> None:
    assert run_ranks(1, damped_masters) == [[True, True]]


def skip_step(rank: int, world: int) -> dict[str, Any]:
    """Poison one rank's gradient and report whether anything moved anywhere."""
    from tests.layouts import layout_stepper, local_pieces

    config = make_config(model=GPT, parallel={"pp": 2}, precision={"dtype": "fp32"})
    stepper = layout_stepper(config)
    micros = micro_batches(config, make_batch(config, 0), stepper.mesh.dp.rank, stepper.mesh.dp.size)
    stepper.run(0, micros, 1e-2)
    before = local_pieces(stepper), [shard.exp_avg.clone() for shard in stepper.optimizer.shards]
    scale = float("inf") if rank == 1 else 1.0
    original = stepper._token_share
    stepper._token_share = lambda batches: original(batches) * scale  # type: ignore[method-assign]
    result = stepper.run(1, micros, 1e-2).read()
    after = local_pieces(stepper), [shard.exp_avg.clone() for shard in stepper.optimizer.shards]
    same = all((a == b).all() for (_, a), (_, b) in zip(before[0], after[0], strict=True))
    moments = all(torch.equal(a, b) for a, b in zip(before[1], after[1], strict=True))
    stepper._token_share = original  # type: ignore[method-assign]
    healthy = stepper.run(2, micros, 1e-2).read()
    return {"applied": result.applied, "same": same, "moments": moments, "next": healthy.applied,
            "count": stepper.optimizer.step_count.item()}  # fmt: skip


def test_non_finite_gradient_on_one_rank_skips_the_update_on_all() -> None:
    for told in run_ranks(2, skip_step):
        assert told == {"applied": False, "same": True, "moments": True, "next": True, "count": 2.0}


def vote(rank: int, world: int) -> bool:
    from tests.layouts import layout_stepper

    config = make_config()
    stepper = layout_stepper(config)
    micros = micro_batches(config, make_batch(config, 0), stepper.mesh.dp.rank, stepper.mesh.dp.size)
    return stepper.run(0, micros, 1e-2, stop=rank == 1).read().stop


def test_one_rank_asked_to_stop_stops_all() -> None:
    assert run_ranks(2, vote) == [True, True]


def test_vocabulary_of_the_tests_is_not_divisible() -> None:
    assert VOCAB % 2 == 1, "the parity suite relies on an uneven vocabulary"
