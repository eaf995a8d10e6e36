"""Hosts of a cluster on one machine: network namespaces with their own address, name, home and sshd.

`delay` makes the links between them slow or lossy, `throughput` measures them.
"""
