"""Around the model: how a run starts, fits itself to data and machine, meets other processes, logs, saves and ends.

`start` hands over to the deepspeed launcher, `cluster` reads who we are, `checkpoint` and `journal` are what stays.
"""
