#!/bin/sh
# DALI 2.4.0, WebDataset: samples are wrong or empty where names have more than 100 bytes, and its own index with a blank
# in a name is refused.
#
# A tar has a field of 100 bytes for a name. GNU tar and PAX (Python's default, and webdataset's) put a longer name into a
# member of its own. Expected: fn.readers.webdataset gives each sample's bytes, with the index of DALI's own wds2idx and
# without one. Seen, with wds2idx and the reader of the same wheel and no error or warning:
#   GNU long names: wds2idx writes the place of the long name; the reader gives pieces of the name as the image and label.
#   PAX long names: without an index every component of every sample comes out empty.
#   A blank in a name: wds2idx writes it as it is; the reader cannot parse that index and raises.
#
# Installs into a temporary folder (some 600 MB); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check nvidia-dali-cuda120==2.4.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from nvidia.dali import fn, pipeline_def


def write(path, kind, base):
    with tarfile.open(path, "w", format=kind) as archive:
        for number in range(3):
            for ending, body in ((".txt", b"text %d" % number), (".cls", b"%d" % number)):
                member = tarfile.TarInfo(f"{base}{number}{ending}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))


@pipeline_def(batch_size=3, num_threads=1, device_id=None)
def reader(path, index):
    texts, classes = fn.readers.webdataset(paths=[path], index_paths=[index] if index else None, ext=["txt", "cls"])
    return texts, classes


def read(path, index):
    try:
        pipeline = reader(str(path), str(index) if index else None)
        pipeline.build()
        return [[bytes(np.array(one)).decode() for one in column] for column in pipeline.run()]
    except RuntimeError as error:
        return "error: Malformed index file" if "Malformed index file" in str(error) else f"error: {error}"


for case, kind, base in (
    ("short names", tarfile.USTAR_FORMAT, "a"),
    ("GNU long names", tarfile.GNU_FORMAT, "n" * 110),
    ("PAX long names", tarfile.PAX_FORMAT, "n" * 110),
    ("a blank", tarfile.USTAR_FORMAT, "my photo "),
):
    path = Path(sys.argv[1], case.replace(" ", "_") + ".tar")
    index = path.with_suffix(".idx")
    write(path, kind, base)
    subprocess.run([Path(sys.executable).with_name("wds2idx"), path, index], check=True, stdout=subprocess.DEVNULL)
    print(f"{case}, with wds2idx's index: {read(path, index)}")
    print(f"{case}, without an index: {read(path, None)}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
short names, with wds2idx's index: [['text 0', 'text 1', 'text 2'], ['0', '1', '2']]
short names, without an index: [['text 0', 'text 1', 'text 2'], ['0', '1', '2']]
GNU long names, with wds2idx's index: [['nnnnnn', 'nnnnnn', 'nnnnnn'], ['n', 'n', 'n']]
GNU long names, without an index: [['text 0', 'text 1', 'text 2'], ['0', '1', '2']]
PAX long names, with wds2idx's index: [['text 0', 'text 1', 'text 2'], ['0', '1', '2']]
PAX long names, without an index: [['', '', ''], ['', '', '']]
a blank, with wds2idx's index: error: Malformed index file
a blank, without an index: [['text 0', 'text 1', 'text 2'], ['0', '1', '2']]
TEXT
diff "$folder/expected" "$folder/seen" && echo "DALI 2.4.0: as stated"
