"""Files are complete or absent, and locks end with their holder."""

import hashlib
import os
import subprocess
import sys

import pytest

from common.files import fingerprint, lock, locked, replacing, replacing_path, sha256, write_atomically
from config.recipe import ROOT


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "report.json"
    write_atomically(path, "old")
    write_atomically(path, "new", durable=False)
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["report.json"]
    assert fingerprint(path) == {"bytes": 3, "sha256": sha256(path)}


def test_a_digest_is_that_of_all_bytes_and_each_part_is_counted(tmp_path):
    path, parts = tmp_path / "large", []
    path.write_bytes(os.urandom(2_500_000))
    assert sha256(path, parts.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(parts) == 3 and sum(parts) == 2_500_000


@pytest.mark.parametrize("writing", [replacing, replacing_path])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, writing):
    path = tmp_path / "table.npz"
    path.write_text("old")
    with pytest.raises(RuntimeError), writing(path) as new:
        if writing is replacing:
            new.write(b"half")
        else:
            new.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.npz"]


def test_a_lock_keeps_others_out_until_its_holder_dies(tmp_path):
    code = "import sys, time; from pathlib import Path; from common.files import lock; held = lock(Path(sys.argv[1]))\n"
    code += "print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError):
        lock(tmp_path / "lock", wait=False)
    holder.kill()
    holder.wait()
    with locked(tmp_path / "lock", wait=False) as file:
        file.write("ours")
