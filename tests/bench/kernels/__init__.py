"""Each kernel, forward and backward, against torch eager, torch.compile, and what the machine can do."""
