"""Record files, read in place: TFRecord and RecordIO.

Each image is a byte range of the file, so that training reads it in any order, without conversion, TensorFlow or MXNet.
"""
