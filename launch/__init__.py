"""Starts a run on one machine or many nodes, watches its processes and ends them; it does nothing else.

`start` chooses and checks the nodes, `node` runs the deepspeed launcher on each, `supervise` watches them all. `sync`,
`wheels`, the SLURM script, the Dockerfile and the Kubernetes manifests bring the program to the nodes.
"""
