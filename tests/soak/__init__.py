"""Long trials of a run's survival; never part of the test suite. `make soak` starts them."""
