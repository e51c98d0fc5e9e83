"""AdamW on ZeRO-1 shards, learning-rate and batch-size schedules, loss scaling."""
