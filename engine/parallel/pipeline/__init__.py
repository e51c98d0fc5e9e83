"""Pipeline parallelism: schedules as data, stage partition, transport between stages, one executor."""
