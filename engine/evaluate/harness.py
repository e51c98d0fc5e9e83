"""EleutherAI's lm-evaluation-harness on a model of ours. Import only where tasks are wanted: it loads lm_eval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.model import LM

from engine.errors import ConfigError
from engine.evaluate.text import Continuing, TextModel

_COUNT = 256  # tokens generated where a task does not say
_OPTIONS = ("until", "max_gen_toks", "do_sample", "temperature", "top_k")


class HarnessModel(LM):
    """The harness's interface, answered by a `TextModel`. Each request's `args` hold its texts."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.model = model

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether it is the greedy continuation) of each (context, continuation)."""
        return self._kept("loglikelihood", requests, self.model.continuations([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-likelihood in nats of each whole (text,)."""
        found = self.model.documents([request.args[0] for request in requests])
        return self._kept("loglikelihood_rolling", requests, found)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the continuation of each (context, options); ConfigError for an option that we do not have."""
        found = self.model.generate(
            [request.args[0] for request in requests], [_continuing(request.args[1]) for request in requests]
        )
        return self._kept("generate_until", requests, found)

    def _kept(self, name: str, requests: Sequence[Any], found: list[Any]) -> list[Any]:
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial(name, request.args, result)
        return found


def _continuing(options: dict[str, Any]) -> Continuing:
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ConfigError(
            f"a task asks for generation with {unknown[0]}={options[unknown[0]]!r}, which is not available; write "
            f"only {', '.join(_OPTIONS)} under generation_kwargs."
        )
    until = options.get("until", [])
    return Continuing(
        count=int(options.get("max_gen_toks", _COUNT)),
        stops=(until,) if isinstance(until, str) else tuple(until or ()),
        temperature=float(options.get("temperature") or 1.0) if options.get("do_sample") else 0.0,
        top_k=int(options.get("top_k") or 0),
    )


def run_tasks(model: TextModel, path: Path) -> dict[str, dict[str, float]]:
    """Run the task that the yaml file `path` defines, or all of a folder; return the metrics of each by name."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(path if path.is_dir() else path.parent), include_defaults=False)
    chosen = list(manager.all_subtasks) if path.is_dir() else [str(path)]
    if not chosen:
        raise ConfigError(f"tasks={path}: no yaml file in this folder defines a task; write one with a 'task:' line.")
    found = simple_evaluate(
        model=HarnessModel(model), tasks=chosen, task_manager=manager, log_samples=False, bootstrap_iters=1000
    )
    return {
        task: {
            key.removesuffix(",none"): float(value)
            for key, value in metrics.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for task, metrics in (found or {})["results"].items()
    }
