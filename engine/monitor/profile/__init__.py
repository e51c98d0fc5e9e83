"""A torch profiler trace of some steps by every rank, and a summary of what their time went to (`profile.steps`)."""
