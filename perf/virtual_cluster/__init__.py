"""A cluster on one machine: hosts are network namespaces, each with its address, name, home and sshd.

`delay` makes the links between the hosts slow or lossy, `throughput` measures them.
"""
