"""Starts toy ranks the way pretrain.py starts real ones; with a port, as one of two nodes that meet there."""

import sys
from pathlib import Path

from engine.config import ClusterConfig
from launch.nodes import Nodes
from launch.ranks import start_ranks

if __name__ == "__main__":
    toy = str(Path(__file__).with_name("toy_rank.py"))
    count, what, folder, restarts, *port = sys.argv[1:]
    cluster = ClusterConfig(kind="torchrun", nodes=2, rendezvous=f"localhost:{port[0]}") if port else None
    nodes = Nodes(cluster) if cluster is not None else None
    command = [sys.executable, toy, what, folder]
    outcome = start_ranks(command, int(count), Path(folder), int(restarts), nodes=nodes)
    print("stopped" if outcome.stopped else "ended")
    sys.exit(outcome.code)
