#!/bin/sh
# Pillow 13.0.0: a JPEG 2000 of more than 8 bits is read with other values, and color of more bits as 8-bit RGB.
#
# Expected: as for 16-bit PNG and TIFF in gray, np.asarray(Image.open(f)) has the samples of the file. Seen: gray of 12
# bits comes as mode I;16 with each sample times 16 (its white becomes 65,520), and color of 16 bits as mode RGB with 8
# bits, without a warning; imagecodecs, another reader of the same library (OpenJPEG), gives the samples. Satellite and
# pathology images are such files; thresholds and statistics of them are off by 16, or their depth is gone.
# Source: src/libImaging/Jpeg2KDecode.c (j2ku_gray_i, j2ku_srgb_rgb), which shift samples to 16 and to 8 bits.
#
# Installs into a temporary folder; needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check \
    pillow==13.0.0 imagecodecs==2026.3.6 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
import io

import imagecodecs
import numpy as np
from PIL import Image

gray = np.arange(4096, dtype=np.uint16).reshape(64, 64)
color = np.stack([gray * 16, gray, gray[::-1]], axis=-1)
for name, given, bits in (("gray of 12 bits", gray, 12), ("color of 16 bits", color, 16)):
    file = imagecodecs.jpeg2k_encode(given, level=0, reversible=True, bitspersample=bits, codecformat="jp2")
    image = Image.open(io.BytesIO(file))
    seen = np.asarray(image)
    same = (imagecodecs.jpeg2k_decode(file) == given).all()
    print(f"{name}: imagecodecs the same {same}; Pillow {image.mode}, {seen.dtype}, highest {given.max()} -> {seen.max()}")
PYTHON
"$folder/venv/bin/python" -W error "$folder/show.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
gray of 12 bits: imagecodecs the same True; Pillow I;16, uint16, highest 4095 -> 65520
color of 16 bits: imagecodecs the same True; Pillow RGB, uint8, highest 65520 -> 255
TEXT
diff "$folder/expected" "$folder/seen" && echo "Pillow 13.0.0: as stated"
