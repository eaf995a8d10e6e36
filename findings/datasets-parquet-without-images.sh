#!/bin/sh
# datasets 5.2.0: to_parquet of a folder of images writes a file without the images.
#
# Expected: load_dataset("imagefolder").to_parquet(file) gives a file that can be moved, as save_to_disk and push_to_hub do,
# which embed the bytes. Seen: the column `image` has bytes = null and the absolute path of each image on this machine, with
# no warning. On another machine the file holds labels and no images. What embeds them first: a map() over the rows, or
# save_to_disk.
#
# Installs into a temporary folder (some 500 MB). Exit code 0: as stated above.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 pillow==12.0.0
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
from datasets import load_dataset
from PIL import Image

folder = Path(sys.argv[1])
for number in range(4):
    path = folder / "images" / f"class{number % 2}" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(path)
loaded = load_dataset("imagefolder", data_dir=str(folder / "images"), split="train")
loaded.to_parquet(folder / "out.parquet")
loaded.save_to_disk(folder / "saved")


def show(case, column):
    rows = column.to_pylist()
    print(
        f"{case}: {sum(row['bytes'] is not None for row in rows)} of {len(rows)} rows have bytes, "
        f"{sum(Path(row['path']).is_absolute() for row in rows)} have an absolute path"
    )


show("to_parquet", pyarrow.parquet.read_table(folder / "out.parquet").column("image"))
with pyarrow.memory_map(str(next((folder / "saved").glob("*.arrow")))) as file:
    show("save_to_disk", pyarrow.ipc.open_stream(file).read_all().column("image"))
PYTHON
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/show.py" "$folder" 2>"$folder/stderr" | tee "$folder/seen" || { cat "$folder/stderr"; exit 1; }
cat > "$folder/expected" <<'TEXT'
to_parquet: 0 of 4 rows have bytes, 4 have an absolute path
save_to_disk: 4 of 4 rows have bytes, 0 have an absolute path
TEXT
diff "$folder/expected" "$folder/seen" && echo "datasets 5.2.0: as stated"
