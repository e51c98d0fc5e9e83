"""Before hours are burnt: what is wrong with the machines, disks and links of a run, in one line a finding."""
