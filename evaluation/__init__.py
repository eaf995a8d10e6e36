"""What a trained backbone is worth: features of images and scores on them.

`features` turns images into features on all ranks, `knn` scores them without training anything.
"""
