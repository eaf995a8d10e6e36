"""Dense evaluation: a class for every pixel, from the maps of a frozen backbone.

`masks` reads images with their masks, `maps` gives feature maps, `windows` slides over large images, `linear` trains a
linear layer, `propagation` carries labels over from the nearest patches, `confusion` scores.
"""
