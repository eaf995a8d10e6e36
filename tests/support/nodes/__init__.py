"""What tests of several nodes share: runs on hosts, and SLURM on them."""
