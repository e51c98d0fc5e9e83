"""Sweeps: `pretrain.py -m` with any of Hydra's launchers and sweepers, a run for each point, and a table of them."""
