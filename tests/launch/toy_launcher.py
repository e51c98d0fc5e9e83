"""Starts toy ranks the way pretrain.py starts real ones."""

import sys
from pathlib import Path

from launch.ranks import start_ranks

if __name__ == "__main__":
    toy = str(Path(__file__).with_name("toy_rank.py"))
    outcome = start_ranks([sys.executable, toy, *sys.argv[2:]], int(sys.argv[1]))
    print("stopped" if outcome.stopped else "ended")
    sys.exit(outcome.code)
