"""Lists a RecordIO file (MXNet's .rec) as byte ranges.

A record is: the mark 0xced7230a; three bits that tell parts of a record, and 29 of its length; MXNet's header (flag,
label float32, id and second id uint64; `flag` more labels follow); the bytes of the image; zeros up to a multiple of 4.
All is little-endian. Source: MXNet's recordio.py and dmlc-core's recordio.h.
"""

from __future__ import annotations

import os
import struct

from pipeline.dataset.finding.choice import NONE, Choice
from pipeline.dataset.finding.labels import label_of
from pipeline.dataset.records.listing import Records, Window
from pipeline.dataset.table import DatasetError

MARK = struct.pack("<I", 0xCED7230A)
HEADER = struct.Struct("<IfQQ")  # flag, label, id, second id
LONGEST = (1 << 29) - 1  # bytes of a record


def list_recordio(path: str, choice: Choice) -> Records:
    """The images of a RecordIO file. Raises DatasetError if it is damaged.

    A record in several parts has no byte range of its own and is left out; a record with several labels has none here.
    """
    name = os.path.basename(path)
    records = Records()
    with open(path, "rb") as file:
        window = Window(file.fileno())
        at = 0
        while at < window.size:
            head = window.read(at, 8 + HEADER.size + 4)
            if len(head) < 8 or head[:4] != MARK:
                raise DatasetError(f"{name}: no RecordIO file, or damaged at byte {at}; copy it again")
            (word,) = struct.unpack("<I", head[4:8])
            part, length = word >> 29, word & LONGEST
            if at + 8 + length > window.size:
                raise DatasetError(f"{name}: cut short in the record at byte {at}; copy it again")
            if part or length < HEADER.size:
                records.left_out["record in parts" if part else "record without an image"] += part in (0, 1)
            else:
                flag, label, _, _ = HEADER.unpack(head[8 : 8 + HEADER.size])
                if flag == 1:
                    (label,) = struct.unpack("<f", head[8 + HEADER.size :])
                begin = HEADER.size + 4 * flag
                if flag < 2**20 and begin < length:
                    value = None if flag > 1 or choice.label == NONE else label_of(label, name)
                    records.add(at + 8 + begin, length - begin, f"{name}-{len(records.keys):06d}", value)
                else:
                    records.left_out["record without an image"] += 1
            at += 8 + length + -length % 4
    return records
