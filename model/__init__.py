"""What is learned and how: network, codes, loss, queue, learning rate, optimizer, weights.

Plain torch: nothing here knows of images on disk, of DeepSpeed or of how many machines there are.
"""
