"""Images with any number of channels and any depth: .npy, .npz, TIFF, 16-bit PNG.

A sample table states one `PixelFormat` for all its images. A scan decides it, and quarantines the images that differ.
`COLOR`, 8-bit RGB, is what all other modules of `pipeline.dataset` make of pictures.
"""
