"""Images inside of files that a library opens: HDF5, and DICOM of several frames.

The container of such a row is `x.h5//cat/1` or `x.dcm//frame`, and its offset counts images: see `names`.
"""
