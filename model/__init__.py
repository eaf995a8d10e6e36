"""The SwAV model and its mathematics: network, codes, loss, queue, learning rate, optimizer, weights.

Plain torch, with torch.distributed for sums over ranks: independent of data on disk, DeepSpeed and number of machines.
"""
