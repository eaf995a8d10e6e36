"""The SwAV model and its mathematics in plain torch, with torch.distributed for sums over ranks.

`swav` is the network, made of a `backbone`; `objective` computes codes and loss (`sinkhorn`, `loss`, `queue`,
`teacher`, `distillation`); `clustering` computes the targets of the other two methods; `optimizer` moves the network;
`monitor` and `probe` observe it. Nothing here knows data on disk, DeepSpeed or nodes.
"""
