"""What takes minutes to hours to prove; never part of the test suite. `make soak` starts it."""
