"""Starts toy ranks the way pretrain.py starts real ones."""

import sys
from pathlib import Path

from launch.ranks import start_ranks

if __name__ == "__main__":
    toy = str(Path(__file__).with_name("toy_rank.py"))
    count, what, folder, restarts = sys.argv[1:]
    outcome = start_ranks([sys.executable, toy, what, folder], int(count), Path(folder), int(restarts))
    print("stopped" if outcome.stopped else "ended")
    sys.exit(outcome.code)
