"""The full configuration: one typed dataclass per Hydra group, every field documented.

Only this module knows the whole configuration; everything below receives the few values it needs.
Rules that tie fields of one group to another are in `engine.validate`. The comment behind a field is its
documentation: `--help` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Traits of one transformer (`conf/model/`). Each trait names a component of `engine.models`."""

    name: str = "llama"  # label for logs and run names
    layers: int = 4  # transformer blocks
    hidden: int = 256  # width of the residual stream
    heads: int = 4  # query heads
    kv_heads: int | None = None  # key/value heads (grouped-query attention); null: as many as `heads`
    head_dim: int | None = None  # null: hidden / heads
    ffn: int = 704  # width of the feed-forward layer (of the gate, for gated activations)
    vocab_size: int | None = None  # null: the tokenizer's size rounded up to a multiple of `vocab_multiple`
    vocab_multiple: int = 64  # rounding for vocab_size=null; independent of the layout
    block: str = "pre_norm"  # pre_norm | post_norm | deepnorm | deepnorm_glm | sandwich | parallel | parallel_two_norms
    final_norm: bool = True  # a `norm` before the output projection
    norm: str = "rmsnorm"  # rmsnorm | layernorm | layernorm_no_bias
    norm_eps: float = 1e-5
    qk_norm: bool = False  # a `norm` over each head of q and of k, before positions (arXiv 2302.05442)
    embedding_norm: bool = False  # a `norm` right after the token embedding (BLOOM, arXiv 2211.05100)
    positions: str = "rope"  # rope | learned | learned_2d (GLM) | sinusoidal | none | alibi | t5 | transformer_xl
    rope_theta: float = 10000.0
    rope_fraction: float = 1.0  # share of a head's features that turn, the first ones (GPT-NeoX-20B: 0.25)
    rope_interleaved: bool = False  # pairs are neighbours (GPT-J), not feature i and i + half (Llama)
    rope_scaling: float = 1.0  # slow rotations are this many times slower (Llama 3.1: 8, arXiv 2407.21783); 1: none
    rope_scaling_low: float = 1.0  # slow: fewer turns than this in rope_scaling_context
    rope_scaling_high: float = 4.0  # fast, and left alone: more turns than this; between the two a mixture
    rope_scaling_context: int = 8192  # tokens of the context before scaling
    max_positions: int = 2048  # rows of the learned position table; upper bound of data.seq_len for it
    relative_buckets: int = 32  # of distances, for positions=t5 (arXiv 1910.10683)
    relative_distance: int = 128  # from which on all distances share the last bucket
    query_layer: bool = False  # queries of the last layer come from a second position table (PanGu-alpha)
    activation: str = "swiglu"  # swiglu | geglu | geglu_tanh | reglu | gelu | gelu_tanh | relu | squared_relu
    attention_window: int | None = None  # tokens that a query sees, its own included; null: all before it
    window_interval: int = 1  # the window is on every so manieth layer, the last included (GPT-3: 2); others see all
    attention_softcap: float = 0.0  # scores become cap * tanh(score / cap) (Grok-1: 30); 0: as they are
    attention_scale: float | None = None  # factor of the scores; null: 1 / sqrt(head_dim); T5: 1
    attention_bias: bool = False  # bias of the q, k, v projections
    attention_out_bias: bool = False  # bias of the attention output projection
    mlp_bias: bool = False  # biases of the feed-forward projections
    tied_embeddings: bool = True  # the output projection is the embedding matrix
    head_bias: bool = False  # bias of the output projection (GPT-J)
    embedding_scale: float | None = 1.0  # factor of the token embeddings; null: sqrt(hidden)
    logit_scale: float | None = 1.0  # factor of the logits; null: 1 / sqrt(hidden) (PaLM, T5)
    hidden_dropout: float = 0.0  # after attention, after the feed-forward layer
    attention_dropout: float = 0.0  # on the attention probabilities
    embedding_dropout: float = 0.0  # on the sum of the embeddings
    embedding_grad: float = 1.0  # share of the gradient that token look-ups receive (GLM-130B, arXiv 2210.02414: 0.1)
    init: str = "normal"  # std of weights: normal (init_std) | small | third | fan_in | xavier (engine/models/inits.py)
    init_std: float = 0.02  # standard deviation of init=normal
    output_init: str = "scaled"  # of attention's and the feed-forward's last matrix: scaled | plain | wang (same file)


@dataclass
class DataConfig:
    """Where text comes from and how it becomes samples (`conf/data/`)."""

    paths: list[Any] = field(default_factory=list)  # files, globs, or index prefixes; [weight, path] pairs blend
    format: str = "auto"  # auto | builtin | text | jsonl | megatron (by ending when auto)
    jsonl_key: str = "text"  # field of each JSON line that holds the text
    cache_dir: str = "${run.root}/data"  # where tokenizers and indexed corpora are kept
    tokenizer: str = "train"  # "train": a byte-level BPE trained on the corpus; else a path to tokenizer.json
    tokenizer_vocab: int = 4096  # vocabulary size for tokenizer=train
    append_eod: bool = True  # append the end-of-document token to each document
    workers: int = 0  # preprocessing processes; 0: one per core
    seq_len: int = 256  # tokens per sample
    split: list[float] = field(default_factory=lambda: [969, 30, 1])  # train, valid, test shares of the documents
    valid: dict[str, Any] = field(default_factory=dict)  # more validation sets: {name: path, or a list as for paths}
    skip: list[Any] = field(default_factory=list)  # [first, stop) ranges of the sample order that are passed over
    document_mask: bool = False  # attention does not cross document boundaries
    position_reset: bool = False  # positions restart at each document (needs document_mask)
    eod_loss: bool = True  # count the loss of predicting across the end-of-document token
    prefetch: int = 2  # global batches prepared ahead by the background worker; 0: in the foreground


@dataclass
class ObjectiveConfig:
    """What is learned from the text (`conf/objective/`). Null is what was published; keys without a use stay null."""

    name: str = "causal"  # causal | prefix | masked | span_corruption | ul2 | glm | alexatm | fim | unified
    noise: float | None = None  # share of the tokens that is masked or cut out; published: 0.15
    span: float | None = None  # mean length of what is cut out (span_corruption, glm, alexatm); published: 3
    denoisers: list[Any] | None = None  # ul2: [{mode: R, noise: 0.15, span: 3, weight: 1},...]; modes R, X, S (no span)
    endings: float | None = None  # share of texts whose end is to be written (glm: [gMASK], 0.7; alexatm: [CLM], 0.2)
    shortest_end: float | None = None  # glm: smallest share of a text that such an end is; published: 0.2
    block_positions: bool | None = None  # glm: 2-D positions (model.positions=learned_2d); null: places count on
    rate: float | None = None  # fim: share of the documents that is rearranged; published: 0.5
    spm: float | None = None  # fim: of those, the share that has the suffix first; published: 0.5
    level: str | None = None  # fim: what documents are cut between: character | token; published: character


@dataclass
class ParallelConfig:
    """The layout (`conf/parallel/`): it changes speed and memory, never the training."""

    tp: int = 1  # tensor-parallel ranks
    pp: int = 1  # pipeline stages
    dp: int | None = None  # data-parallel replicas; null: world size / (tp * pp * cp)
    cp: int = 1  # context-parallel ranks (1 for now)
    sequence_parallel: bool = False  # shard activations between blocks along the sequence over tp
    schedule: str = "1f1b"  # gpipe | 1f1b | interleaved
    virtual_stages: int = 1  # model chunks per pipeline rank (schedule=interleaved)
    stage_layers: list[int] | None = None  # layers of each stage, in model order; null: balanced
    recompute: str = "none"  # none | selective | full
    bucket_mb: float = 25.0  # size of a gradient bucket, MiB of main gradient
    overlap: bool = True  # reduce gradients while the backward pass runs
    timeout_s: float = 600.0  # how long a collective may wait for its peers, and any part of a step may take


@dataclass
class OptimConfig:
    """AdamW, its schedules and clipping (`conf/optim/`)."""

    lr: float = 3e-4  # peak learning rate
    min_lr: float = 3e-5  # learning rate at the end of the decay
    schedule: str = "cosine"  # constant | cosine | linear | inverse_sqrt | wsd
    warmup_steps: int = 0  # linear warm-up from 0
    restart_steps: int | None = None  # steps after which warm-up and decay begin anew (arXiv 1608.03983); null: never
    decay_steps: int | None = None  # step at which min_lr is reached; null: restart_steps, or train.steps
    wsd_decay_fraction: float = 0.1  # share of decay_steps that wsd spends on its final decay
    beta1: float = 0.9
    beta2: float = 0.95
    beta2_schedule: str = "constant"  # constant | palm: 1 - step^-0.8, without bias corrections (arXiv 2204.02311)
    eps: float = 1e-8
    weight_decay: float = 0.1  # for matrices; norms and biases are never decayed
    decay_embeddings: bool = True  # apply weight decay to embedding tables too
    clip: float = 1.0  # largest global gradient norm, in every clip_mode; 0: no fixed limit
    clip_mode: str = "global"  # global | zclip (arXiv 2504.02507) | adagc (arXiv 2502.11034): see engine.optim.clipping
    clip_z: float = 2.5  # zclip: deviations above the usual norm from which on it is clipped
    clip_relative: float = 1.05  # adagc: largest norm of a tensor's gradient, in units of its usual one
    clip_memory: float | None = None  # weight of the past in what is usual; null: 0.97 for zclip, 0.98 for adagc
    clip_warmup: int | None = None  # updates that only learn what is usual; null: 25 for zclip, 100 for adagc
    update_clip: float = 0.0  # StableAdamW (arXiv 2304.13013): damp a tensor's update whose RMS exceeds this; 0: off
    max_update_ratio: float = (
        0.0  # skip updates above this times the norm of the weights (first ones are large); 0: off
    )


@dataclass
class PrecisionConfig:
    """Number formats (`conf/precision/`); masters, moments and gradients stay in fp32 (fp64 for fp64)."""

    dtype: str = "fp32"  # fp64 | fp32 | bf16 | fp16: of parameters and activations
    loss_scale: float = 65536.0  # first loss scale of fp16
    loss_scale_window: int = 1000  # clean steps before the scale doubles
    min_loss_scale: float = 1.0  # the run stops when an overflow wants less


@dataclass
class TrainConfig:
    """Length and batch of the run."""

    steps: int = 200  # optimizer steps
    micro_batch: int = 4  # samples per forward pass of one replica
    global_batch: int = 8  # samples per optimizer step
    ramp: list[int] | None = None  # [first batch, increment, samples]: batch-size ramp-up (as Megatron's)
    z_loss: float = 0.0  # weight of log(Z)^2 in the loss (PaLM, arXiv 2204.02311: 1e-4); validations are without it
    seed: int = 1234
    eval_interval: int = 50  # steps between validations; 0: only at the end
    eval_samples: int = 64  # samples of the validation split that are scored
    log_interval: int = 1  # steps between console lines


@dataclass
class StabilityConfig:
    """Watch the steps; skip an update, roll back, lower the rate, stop (`conf/stability/`). Steps are trained steps."""

    watch: bool = True  # false: only non-finite steps are skipped, nothing else is watched or done
    # -- detectors
    window: int = 128  # accepted steps that say what is normal
    warm: int = 64  # of them, how many must be known before a step is judged
    z: float = 8.0  # an outlier is this many robust standard deviations above normal ...
    z_row: float = 5.0  # ... or, where `alarms` steps in a row are, this many ...
    loss_excess: float = 0.1  # ... and, so that quiet curves do not alarm, its loss at least this many nats above ...
    norm_ratio: float = 2.0  # ... or its gradient norm this many times the normal one
    norm_far: float = 16.0  # times the normal gradient norm that make an outlier of a step whose loss is normal
    alarms: int = 3  # outliers or non-finite steps ...
    span: int = 8  # ... within this many steps make a spike, which is rolled back
    norm_alarms: int = 6  # odd steps in a row that are rolled back where only gradient norms show it, none `norm_far`
    nonfinite_streak: int = 2  # non-finite steps in a row that are rolled back
    overflow_streak: int = 12  # the same for overflows under a dynamic loss scale (fp16)
    slow_span: int = 200  # steps over which the loss is smoothed to see it diverge slowly
    slow_margin: float = 0.3  # nats above its best at which the smoothed loss ...
    slow_patience: int = 200  # ... for this many steps is rolled back
    settle: int = 16  # steps after which the level of a spike that came back after a rollback is accepted
    hold_start: int = 16  # first steps of a run that are neither judged nor learned from
    hold_warmup: int = 16  # the same where a learning-rate warm-up begins later on
    hold_rollback: int = 8  # the same after a rollback
    # -- level 0: the update is not made
    skip_update: bool = True  # of an outlier; a non-finite step's never is
    # -- levels 1 and 2: back to a good state, past the data
    rollback: bool = True
    skip: str = "drop"  # data passed over are dropped, or put off to the end of the planned run: drop | defer
    skip_before: int = 10  # steps of data before the onset that are passed over too
    skip_least: int = 50  # fewest steps of data passed over (more for spikes longer than half of it); 0: none
    min_rewind: int = 50  # steps that the state rolled back to must be older than the onset, unless it is the start
    restart_within: int = 1000  # steps after the start of the run within which it may be gone back to
    same_place: int = 128  # onsets at most this many steps apart are one place: go further back, pass over more
    widen: float = 2.0  # how much more data each further try at a place passes over
    cooldown: int = 20  # steps after a rollback before a spike may be rolled back again; non-finite steps always are
    # -- level 3: a lower learning rate, tighter clipping
    lower_after: int = 2  # rollbacks at a place before the next one lowers the rate as well; 0: every one does
    lr_factor: float = 0.5  # by which it is lowered; 1: never
    lr_hold: int | None = 500  # steps it stays lowered; null: to the end
    lr_rewarm: int = 200  # steps over which it then rises back to the schedule
    clip_factor: float = 1.0  # by which the clipping norm is lowered for as long; 1: not at all
    # -- level 4: stop and explain
    tries: int = 3  # rollbacks at one place, at most
    budget: int = 10  # rollbacks of the whole run, at most
    budget_span: int = 1000  # and within the last so many steps ...
    budget_in_span: int = 5  # ... this many
    # -- machines that compute wrongly
    rerun: bool = True  # compute a step that would be skipped once more: another result is a machine's fault
    recheck_interval: int = 0  # steps between healthy ones that are computed twice as well; 0: none
    drift_interval: int = 100  # steps between comparisons of weights that several ranks hold copies of; 0: none
    # -- states to go back to, besides checkpoints
    healthy_after: int = 16  # steps without trouble that must have followed a state
    snapshot_interval: int = 25  # steps between states kept in host memory
    snapshots: int = 8  # of them, how many at most: each further one touches fresh memory, and costs steps that
    snapshot_mb: float = 1024.0  # of host memory that each rank gives them, MiB; 0: none are kept


@dataclass
class CheckpointConfig:
    """What is saved, when, and what is kept (`conf/checkpoint/`)."""

    interval: int = 100  # steps between checkpoints; 0: only at the end
    keep_last: int = 2  # newest checkpoints kept
    keep_every: int = 0  # besides, keep each checkpoint whose step is a multiple of this; 0: none
    asynchronous: bool = True  # write in the background
    load: str = "auto"  # auto: newest whole one of the run folder | none | path of a run or checkpoint folder
    load_optimizer: bool = True  # with load=PATH of another run: also moments, step and data position
    accept_changes: list[str] = field(default_factory=list)  # of train.seed, data.seq_len, objective.name, ...


@dataclass
class MonitorConfig:
    """Where metrics go (`conf/monitor/`); metrics.jsonl is always written."""

    console: str = "auto"  # auto | rich | plain | off
    wandb: str = "off"  # off | auto (online when logged in, else offline) | offline | online
    wandb_project: str = "trimaran"
    wandb_group: str | None = None  # runs that wandb shows together; a sweep is a group by itself
    tensorboard: bool = False  # also write TensorBoard's event files, into tensorboard/ of the run folder
    straggler_factor: float = 2.0  # warn of a rank that works this many times as long as the others; 0: never
    peak_tflops: float = 0.0  # of one device, for MFU; 0: known from the device's name, else FLOP/s only
    param_norm_interval: int = 10  # steps between those whose weights' norm is measured; 0: none
    pipeline_interval: int = 100  # steps between those whose pipeline actions are timed, for the report; 0: none


@dataclass
class ProfileConfig:
    """A trace of some steps by torch's profiler, and what their time went to, in profile/ of the run folder."""

    steps: str | None = None  # first:last, both included, such as 10:12 (in a YAML file '10:12'); null: none


@dataclass
class OpsConfig:
    """Choice of kernels: libraries on GPUs, the compiled extension, or plain torch (the reference)."""

    backend: str = "auto"  # auto | reference | cpu | cuda (our kernels there) | apex | flash (where they have the op)
    overrides: dict[str, str] = field(default_factory=dict)  # of single ops: {rms_norm: reference, attention: flash}
    head_block_mb: float | None = None  # MiB of logits held at a time; 0: a micro-batch's; null: 16 on CPUs, 0 on GPUs


@dataclass
class ClusterConfig:
    """Where the ranks run (`conf/cluster/`): on this machine, on nodes that meet, or as a job of SLURM's."""

    kind: str = "local"  # local: this machine | torchrun: the same command on every node | slurm: submit a job
    nodes: int = 1  # machines
    ranks_per_node: int | None = None  # null: cluster.gpus_per_node, else this machine's GPUs, else layout / nodes
    rendezvous: str | None = None  # torchrun: HOST:PORT on the first node, where the nodes meet
    node: int | None = None  # torchrun: this node's number; null: SLURM_NODEID, or 0 where HOST is, others as they come
    join_s: float = 600.0  # seconds that nodes wait for each other at a start
    binding: str = "none"  # none | cores: a share of the node's for each rank | numa: those beside its GPU (numactl)
    interface: str | None = None  # network interface for NCCL and gloo, such as ib0; null: they choose
    ib_hca: str | None = None  # InfiniBand adapters for NCCL, such as mlx5_0,mlx5_1; null: it chooses
    # -- of a job
    account: str | None = None  # that is charged
    partition: str | None = None  # or several, with commas
    qos: str | None = None  # quality of service
    time: str | None = None  # limit: 30 (minutes), 12:00:00 (in a file '12:00:00'), 2-00:00:00; null: the partition's
    warn_s: int = 300  # seconds before the limit at which the run is asked to save, and the job to be requeued
    gpus_per_node: int | None = None  # asked for; null: none
    cpus_per_node: int | None = None  # asked for; null: whole nodes, for this job alone
    max_requeues: int = 10  # times that the job is requeued after a rank died or hung, while that brings progress
    array: list[str] = field(default_factory=list)  # a task each: ["train.seed=1", "train.seed=2 optim.lr=1e-3"]
    array_limit: int | None = None  # tasks that run at a time; null: all
    sbatch: list[str] = field(default_factory=list)  # more of sbatch's options: ["--constraint=h100"]
    srun: list[str] = field(default_factory=list)  # more of srun's options: ["--container-image=image.sqsh"]
    prologue: list[str] = field(default_factory=list)  # lines of shell before the training: [module load cuda]
    container: str | None = None  # words that python is started by on each node: apptainer exec --nv image.sif
    python: str | None = None  # the interpreter on the nodes; null: the one that submits


@dataclass
class RunConfig:
    """Where the run lives."""

    root: str = "runs"  # folder of all runs
    name: str = "default"  # this run's folder below root; starting it again resumes it
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # torch threads per rank; 0: cores / ranks on this node
    max_restarts: int = 3  # times that all ranks are started again after one died or hung, while that brings progress


@dataclass
class Config:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    stability: StabilityConfig = field(default_factory=StabilityConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    ops: OpsConfig = field(default_factory=OpsConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    run: RunConfig = field(default_factory=RunConfig)
    faults: list[Any] = field(default_factory=list)  # rehearsed: {what: kill, rank: 1, step: 7} (engine/faults/plan.py)
