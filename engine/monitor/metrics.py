"""Every metric by name: the one table that records, sinks and dashboards share, and the metric tree of wandb.

A record is a flat dict with `step` (steps made so far) and some of the keys below. metrics.jsonl uses the keys;
dashboards get the names that users of Megatron-LM, torchtitan and nanotron already plot.
"""

from __future__ import annotations

from dataclasses import dataclass

Record = dict[str, float | int]

INFO, WARN, ERROR = "info", "warn", "error"  # levels of notices

EVENT = "stability/event"


@dataclass(frozen=True)
class Metric:
    """`key` in records and metrics.jsonl, `dashboard` in wandb; `meaning` includes the unit."""

    key: str
    dashboard: str
    meaning: str


METRICS = {
    metric.key: metric
    for metric in (
        # one record per step
        Metric("loss", "lm loss", "mean loss over the unmasked tokens of the global batch, nats per token"),
        Metric("grad_norm", "grad-norm", "global gradient norm before clipping"),
        Metric("param_norm", "params-norm", "global norm of the weights before the update, on some steps"),
        Metric("lr", "learning-rate", "learning rate of the step"),
        Metric("loss_scale", "loss-scale", "factor on the loss in fp16; 1 otherwise"),
        Metric("skipped", "skipped", "1 when the update was not made (not finite, or an outlier), else 0"),
        Metric("timeline", "stability/timeline", "rollbacks before the record: steps trained again have a higher one"),
        Metric("batch_size", "batch-size", "samples in the global batch"),
        Metric("consumed_samples", "consumed_samples", "samples trained on since the start of the run"),
        Metric("consumed_tokens", "consumed_tokens", "tokens trained on since the start of the run"),
        Metric("step_time_s", "iteration-time", "seconds from asking for the batch to the updated weights"),
        Metric("data_time_s", "time_metrics/data_loading(s)", "seconds of it spent waiting for data"),
        Metric("compute_time_s", "time_metrics/compute(s)", "seconds in forward and backward passes"),
        Metric("communication_time_s", "time_metrics/communication(s)", "seconds waiting for collectives, exposed"),
        Metric("bubble_time_s", "time_metrics/bubble(s)", "seconds waiting for other pipeline stages"),
        Metric("optimizer_time_s", "time_metrics/optimizer(s)", "seconds of norm, clipping and update"),
        Metric("tokens_per_s", "tokens_per_sec", "tokens per second of all ranks"),
        Metric("tokens_per_s_per_device", "tokens_per_sec_per_gpu", "tokens per second and rank"),
        Metric("tflops_per_device", "throughput", "model TFLOP/s per rank (engine.monitor.flops)"),
        Metric("mfu_percent", "mfu(%)", "model FLOP/s as a share of the device's peak, percent"),
        Metric("memory_gib", "memory/max_active(GiB)", "most memory this rank has held, GiB"),
        Metric("alerts", "stability/alerts", "warnings and errors since this start: skips, rollbacks, lost saves"),
        Metric("goodput", "goodput", "useful share of the run's time so far, 0 to 1 (engine.monitor.goodput)"),
        # with a step, every few seconds, of the GPU of the rank that writes (engine.monitor.nvml)
        Metric("gpu_power_w", "gpu/power(W)", "power drawn, watts"),
        Metric("gpu_temperature_c", "gpu/temperature(C)", "temperature, degrees Celsius"),
        Metric(
            "gpu_clock_mhz", "gpu/sm_clock(MHz)", "clock of the multiprocessors, MHz; it falls where power is short"
        ),
        Metric("gpu_busy_percent", "gpu/utilization(%)", "share of the time in which some kernel ran, percent"),
        Metric(
            "gpu_ecc_errors", "gpu/ecc_uncorrected", "memory errors that were not corrected since the driver started"
        ),
        # with a warning or an error, in wandb only
        Metric("event", EVENT, "what happened at the step, in words"),
        # after a validation
        Metric("valid_loss", "lm loss validation", "mean loss over the scored validation samples, nats per token"),
        Metric("valid_perplexity", "lm loss validation ppl", "exp(valid_loss)"),
        # and of each set of data.valid, under the same name everywhere: valid/NAME/loss, /perplexity, /bits_per_byte
        Metric("valid_time_s", "time_metrics/validation(s)", "seconds that the validation took"),
        # after a checkpoint has become visible; `step` is the step it holds
        Metric("checkpoint_save_s", "ckpt/save_s", "seconds until the checkpoint was whole on disk"),
        Metric("checkpoint_stall_s", "ckpt/stall_s", "seconds of it that training waited"),
        Metric("checkpoint_bytes", "ckpt/bytes", "bytes written by all ranks"),
    )
}


def set_key(name: str, metric: str) -> str:
    """Return the key of a metric (loss in nats per token | perplexity | bits_per_byte) of a set of data.valid."""
    return f"valid/{name}/{metric}"


def set_metrics(record: Record) -> dict[str, dict[str, float]]:
    """Return the metrics of each set of data.valid that a record holds, by name."""
    found: dict[str, dict[str, float]] = {}
    for key, value in record.items():
        group, _, rest = key.partition("/")
        name, _, metric = rest.rpartition("/")
        if group == "valid" and name:
            found.setdefault(name, {})[metric] = value
    return found
