"""The targets of DeepCluster-v2 and SeLa-v2, which cluster the embeddings of an epoch before the next one.

`memory` holds the embeddings, `kmeans` and `deepcluster` cluster them over all ranks, `targets` keeps the result.
"""
