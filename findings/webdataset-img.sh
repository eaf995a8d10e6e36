#!/bin/sh
# webdataset 1.0.2: an image written under the key `img` becomes a JPEG, and comes back as bytes.
#
# Expected: TarWriter.write({"__key__": ..., "img": image}) and WebDataset(...).decode("pil") give the image back, as they do
# under `png` and `jpg`. Seen: the writer has a handler for `img`, which encodes the image as a JPEG (pixels change) and names
# the member KEY.img; the decoder does not know `img` and gives undecoded bytes, without a warning. A reader that picks images
# by their extension (DALI's with ext="jpg;png", too) finds none in such a shard.
#
# Installs into a temporary folder (some 150 MB). Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check webdataset==1.0.2 numpy==2.4.6 pillow==12.0.0
cat > "$folder/show.py" <<'PYTHON'
import io
import sys

import numpy as np
import webdataset
from PIL import Image

pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
shard = f"{sys.argv[1]}/shard.tar"
with webdataset.TarWriter(shard) as writer:
    for key in ("img", "png", "jpg"):
        writer.write({"__key__": key, key: Image.fromarray(pixels)})
for sample in webdataset.WebDataset(shard, shardshuffle=False).decode("pil"):
    key = sample["__key__"]
    back = sample[key]
    image = Image.open(io.BytesIO(back)) if isinstance(back, bytes) else back
    print(f"{key}: comes back as {type(back).__name__}, format {image.format}, pixels equal: {bool((np.array(image) == pixels).all())}")
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
img: comes back as bytes, format JPEG, pixels equal: False
png: comes back as Image, format None, pixels equal: True
jpg: comes back as Image, format None, pixels equal: False
TEXT
diff "$folder/expected" "$folder/seen" && echo "webdataset 1.0.2: as stated"
