"""`python -m tests.bench`: Trimaran against plain torch, as ratios measured in one run on one machine.

Never part of the test suite: a clock decides nothing there. `make bench` calls it.
"""
