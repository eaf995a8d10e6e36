"""What a path holds, decided from names alone: the kind of source, its splits, which images and labels of a sample are
meant, and where that is not clear."""
