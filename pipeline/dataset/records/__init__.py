"""Record files, read in place: TFRecord, RecordIO, MDS, LitData, LMDB.

Each image is a byte range of the file, so that training reads it in any order, without conversion and without the
library that wrote it.
"""
