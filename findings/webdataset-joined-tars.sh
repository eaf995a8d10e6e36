#!/bin/sh
# webdataset 1.0.2, joined tars: `cat a.tar b.tar > all.tar` is read up to the end of a.tar, without a word.
#
# Expected: the samples of both tars, as `tar --ignore-zeros -t` lists them, or an error. Seen: the samples of the first;
# no warning is given, also none with Python's warnings as errors, and the default handler raises nothing.
# Source: webdataset/tariterators.py opens the stream with tarfile.open(mode="r|*"), which ends at the first end mark
# (two blocks of zeros); Python's tarfile reads on only with ignore_zeros=True.
#
# Installs into a temporary folder (some 100 MB); needs GNU tar. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check webdataset==1.0.2 numpy==2.4.0 braceexpand==0.1.7 pyyaml==6.0.3
cd "$folder"
for name in a b; do
    mkdir "$name"
    for number in 0 1; do echo "$number" > "$name/$name$number.cls"; done
    (cd "$name" && tar -cf "../$name.tar" *.cls)
done
cat a.tar b.tar > all.tar
cat > show.py <<'PYTHON'
import sys

import webdataset

keys = [sample["__key__"] for sample in webdataset.WebDataset(sys.argv[1], shardshuffle=False)]
print(f"webdataset {webdataset.__version__}: {sys.argv[1]}: {' '.join(keys)}")
PYTHON
{
    echo "tar --ignore-zeros: all.tar: $(tar --ignore-zeros -tf all.tar | sed 's/\.cls//' | tr '\n' ' ' | sed 's/ $//')"
    for name in a b all; do venv/bin/python -W error -W ignore::ResourceWarning show.py "$name.tar"; done
} | tee seen
cat > expected <<'TEXT'
tar --ignore-zeros: all.tar: a0 a1 b0 b1
webdataset 1.0.2: a.tar: a0 a1
webdataset 1.0.2: b.tar: b0 b1
webdataset 1.0.2: all.tar: a0 a1
TEXT
diff expected seen && echo "webdataset 1.0.2: as stated"
