#!/bin/sh
# mosaicml-streaming 0.13.0 and LitData 0.2.76: a JPEG that was opened and then resized in place is stored at its old size.
#
# Expected: an image that Image.open() and thumbnail((64, 64)) give is written with 64 pixels. Seen: MDS's "jpeg" encoding
# and LitData's JPEG serializer copy the bytes of the file that the image was opened from, whatever has been done to its
# pixels since; a copy() of the same image is written as it is. Shards made to save space then hold the originals.
# Source: streaming/base/format/mds/encodings.py (JPEG.encode), litdata/streaming/serializers.py (JPEGSerializer.serialize).
#
# Installs into a temporary folder (some 5 GB with torch's CUDA libraries); needs no GPU. Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check \
    mosaicml-streaming==0.13.0 litdata==0.2.76 torch==2.11.0 pillow==12.1.1 setuptools==80.9.0
mkdir "$folder/work"
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import litdata
from PIL import Image
from streaming import MDSWriter, StreamingDataset

folder = Path(sys.argv[1])
photo = folder / "photo.jpg"
Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(photo)


def small():
    image = Image.open(photo)
    image.thumbnail((64, 64))
    return image


def pair(_):
    return {"opened": small(), "copied": small().copy()}


def main():
    print("size given to the writers:", small().size)
    with MDSWriter(out=str(folder / "mds"), columns={"opened": "jpeg", "copied": "jpeg"}) as writer:
        writer.write(pair(0))
    sample = StreamingDataset(local=str(folder / "mds"), batch_size=1, shuffle=False)[0]
    print("size in streaming: opened image", sample["opened"].size, "copy of it", sample["copied"].size)
    litdata.optimize(fn=pair, inputs=[0], output_dir=str(folder / "lit"), chunk_bytes="1MB", num_workers=1)
    sample = litdata.StreamingDataset(str(folder / "lit"))[0]
    sizes = [sample[name].size if hasattr(sample[name], "crop") else (*sample[name].shape[:0:-1],) for name in ("opened", "copied")]
    print("size in litdata: opened image", sizes[0], "copy of it", sizes[1])


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder/work" 2>"$folder/stderr" | grep '^size' | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
size given to the writers: (64, 48)
size in streaming: opened image (640, 480) copy of it (64, 48)
size in litdata: opened image (640, 480) copy of it (64, 48)
TEXT
diff "$folder/expected" "$folder/seen" && echo "streaming 0.13.0, LitData 0.2.76: as stated"
