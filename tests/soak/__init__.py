"""What takes minutes to hours to prove: started by `make soak`, not by `make test`."""
