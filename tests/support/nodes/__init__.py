"""Helpers for tests of several nodes: runs on hosts, SLURM and sshd."""
