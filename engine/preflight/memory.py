"""Whether a rank's share of the model finds room: what the engine itself allocates, and an estimate of the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from engine.config import Config
from engine.device import DTYPES, Device
from engine.mesh import Mesh
from engine.models.registry import ACTIVATIONS
from engine.preflight.finding import FAULT, OK, WARNING, Finding, size
from engine.preflight.team import Team
from engine.step import Stepper

_PROCESS = 300 << 20  # bytes of Python, torch and a corpus' pages in a rank
_TIGHT = 0.9  # share of what is there from which on a word is due


@dataclass(frozen=True)
class Need:
    """Bytes of one rank: `state` of weights, gradients and optimizer, activations, and copies in host memory."""

    state: int
    activations: int
    host: int


def need_of(config: Config, vocab: int, mesh: Mesh, dp: int) -> Need:
    """Return what this rank will take; all ranks must call it together.

    The state is that of the real model, built without memory. Activations are counted by hand (arXiv 2205.05198 has
    such a count): what each block keeps for the backward pass of the micro-batches in flight, and a block of logits.
    """
    device = Device(torch.device("meta"), mesh.device.backend)
    stepper = Stepper(config, vocab, mesh, device)
    tensors = [stepper.buckets.flat_params, stepper.buckets.flat_grads, *stepper.state_tensors()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    held = sum(tensor.nbytes for tensor in stepper.state_tensors())
    stability = config.stability
    most = min(int(stability.snapshot_mb * 2**20), stability.snapshots * held)
    snapshots = most if stability.watch and stability.rollback else 0
    copy = held if config.checkpoint.asynchronous else 0
    layers = sum(len(chunk.blocks) for chunk in stepper.chunks)
    return Need(sum(storages.values()), _activations(config, vocab, layers, mesh, dp), snapshots + copy + _PROCESS)


def _activations(config: Config, vocab: int, layers: int, mesh: Mesh, dp: int) -> int:
    model, train, parallel = config.model, config.train, config.parallel
    itemsize = DTYPES[config.precision.dtype].itemsize
    micros = max(1, train.global_batch // (dp * train.micro_batch))
    in_flight = micros if parallel.schedule == "gpipe" else min(micros, mesh.pp.size - mesh.pp.rank)
    tokens = train.micro_batch * config.data.seq_len
    gates = 3 if ACTIVATIONS.get(model.activation).gated else 2
    inner = 4 * model.hidden + gates * model.ffn  # q, k, v, attention's output; the feed-forward layer
    outer = 4 * model.hidden  # inputs of both norms and of what follows them
    block = (inner + (outer if parallel.sequence_parallel else outer * mesh.tp.size)) // mesh.tp.size
    kept = model.hidden * layers + block if parallel.recompute == "full" else block * layers
    logits = (vocab // mesh.tp.size) * (itemsize + 4) if mesh.is_last_stage else 0
    return tokens * (kept * itemsize * in_flight + logits)


def check_memory(team: Team, config: Config, vocab: int, mesh: Mesh, dp: int) -> list[Finding]:
    """Compare each rank's need with what its GPU, and its host, have free."""
    need, device = need_of(config, vocab, mesh, dp), mesh.device
    own = need.state + need.activations
    found = []
    if device.is_cuda:
        free = torch.cuda.mem_get_info(device.torch_device)[0]
        gpus = team.gather([own, free])
        worst = max(range(team.world), key=lambda rank: gpus[rank][0] / max(1, gpus[rank][1]))
        found.append(judge_memory(gpus[worst][0], gpus[worst][1], f"the GPU of {team.place(worst)}"))
    hosts = team.gather([need.host if device.is_cuda else own + need.host, available()])
    sums: list[tuple[int, int, str]] = []
    for host in dict.fromkeys(team.hosts):
        ranks = [rank for rank in range(team.world) if team.hosts[rank] == host]
        together = sum(hosts[rank][0] for rank in ranks)
        sums.append((together, min(hosts[rank][1] for rank in ranks), f"{host}, {len(ranks)} rank(s)"))
    together, free, where = max(sums, key=lambda entry: entry[0] / max(1, entry[1]))
    found.append(judge_memory(together, free, where))
    return found


def judge_memory(need: int, free: int, where: str) -> Finding:
    """Judge a need of about `need` bytes where `free` are left."""
    text = f"about {size(need)} of {size(free)} are needed on {where}"
    advice = "more parallel.tp, pp or dp, a smaller train.micro_batch, or parallel.recompute=full"
    if need > free:
        return Finding(FAULT, "memory", f"{text}; write {advice}")
    if need > _TIGHT * free:
        return Finding(WARNING, "memory", f"{text}, which is tight; have ready {advice}")
    return Finding(OK, "memory", text)


def available(limits: Sequence[Path] = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))) -> int:
    """Return the bytes of memory that new work finds on this host, or in the container that it is in."""
    return min([psutil.virtual_memory().available, *_left_in_containers(limits)])


def _left_in_containers(folders: Sequence[Path]) -> Iterator[int]:
    names = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    for folder in folders:
        for limit, usage in names:
            try:
                yield int((folder / limit).read_text()) - int((folder / usage).read_text())
            except (OSError, ValueError):  # no such container, or "max"
                continue
