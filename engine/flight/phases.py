"""The names of what a rank can be doing: in records, in messages, and in plans of faults."""

from __future__ import annotations

START = "start"
DATA, FORWARD, P2P, BACKWARD = "data", "forward", "p2p", "backward"
REDUCE, NORM, OPTIMIZER, READ = "grad_reduce", "grad_norm", "optimizer", "read"
LOG, EVAL, END = "log", "eval", "end"
SAVE = "save"  # the part of a save that training waits for
SAVE_SHARD, SAVE_MANIFEST, SAVE_RENAME = "save.shard", "save.manifest", "save.rename"
SAVE_REPLACED, SAVE_PRUNE, SAVE_DONE = "save.replaced", "save.prune", "save.done"
ROLLBACK_INTENT, ROLLBACK_LOAD, ROLLBACK_COMMIT = "rollback.intent", "rollback.load", "rollback.commit"

# In the order in which a step, then a save, then a rollback goes through them.
PHASES = (
    START, DATA, FORWARD, P2P, BACKWARD, REDUCE, NORM, OPTIMIZER, READ, LOG, EVAL, SAVE,
    SAVE_SHARD, SAVE_MANIFEST, SAVE_RENAME, SAVE_REPLACED, SAVE_PRUNE, SAVE_DONE,
    ROLLBACK_INTENT, ROLLBACK_LOAD, ROLLBACK_COMMIT, END,
)  # fmt: skip
