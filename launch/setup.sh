#!/bin/sh
# Sets up the virtual environment .venv from a lock file; does nothing if .venv is up to date.
# usage: launch/setup.sh requirements-cuda120.lock [python3 [wheels]]
# wheels: a folder that `make wheels` has filled. Packages come from there alone: no network is used.
set -eu
lock=$1
python=${2:-python3}
wheels=${3:-}
cd "$(dirname "$0")/.."

# Container images often set it. Python then compiles every imported package anew in every process (timm: 14 s, not 6 s).
unset PYTHONDONTWRITEBYTECODE

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 2; }

[ -f "$lock" ] || fail "no lock file $lock; give DALI=cuda120 or DALI=cuda130"
command -v "$python" >/dev/null || fail "$python is not installed; install Python 3.11, 3.12 or 3.13, or give PYTHON=/path/to/python3"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
    fail "$("$python" --version) is not supported; give Python 3.11, 3.12 or 3.13 as PYTHON=..."

# The stamp holds the lock's checksum, so that a changed lock or an interrupted installation is set up again.
stamp=.venv/.swave-ready
checksum=$(sha256sum "$lock" | cut -d' ' -f1)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$checksum" ] && exit 0

if [ -n "$wheels" ]; then
    list=$wheels/requirements.txt
    [ -f "$list" ] || fail "WHEELS=$wheels: there is no $list; run make wheels where there is a network, and copy the folder"
    while read -r package _; do
        grep -q "^$package\([ ;\\]\|\$\)" "$lock" ||
            fail "WHEELS=$wheels: $package is not in $lock; give the DALI=... with which make wheels ran"
    done < "$list"
fi

# Build requirements: Debian packages venv separately from python3; ffcv has no wheel and is compiled against OpenCV (two
# of its libraries: launch/opencv) and TurboJPEG.
missing=
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ -n "$wheels" ]; then
    [ -z "$missing" ] || fail "missing:$missing, which WHEELS=$wheels does not have; install it from the system's own packages"
else
    "$python" -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2>/dev/null || missing="$missing python3-dev"
    command -v c++ >/dev/null || missing="$missing g++"
    command -v pkg-config >/dev/null || missing="$missing pkg-config"
    pkg-config --exists opencv4 2>/dev/null || [ -f /usr/include/opencv4/opencv2/imgproc.hpp ] ||
        missing="$missing libopencv-imgproc-dev"
    pkg-config --exists libturbojpeg 2>/dev/null || missing="$missing libturbojpeg0-dev"
fi
if [ -n "$missing" ]; then
    by_hand="missing:$missing; as root: apt-get update && apt-get install --no-install-recommends$missing"
    command -v apt-get >/dev/null || fail "apt-get is not available; install the equivalents of these Debian packages:$missing"
    as_root=
    [ "$(id -u)" = 0 ] || as_root=$(command -v sudo) || fail "$by_hand"
    say "installing system packages:$missing"
    { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $missing; } >&2 || fail "$by_hand"
fi

say "installing into .venv from ${wheels:-$lock} (about 5 GB with torch's CUDA libraries; takes a few minutes)"
rm -f "$stamp"
[ -x .venv/bin/python ] || "$python" -m venv .venv
# Remove the DALI of the other lock: two DALI wheels cannot be installed together.
for other in requirements-cuda120.lock requirements-cuda130.lock; do
    [ "$other" = "$lock" ] && continue
    sed -n 's/^\(nvidia-dali-[a-z0-9]*\)==.*/\1/p' "$other" | xargs -r .venv/bin/python -m pip uninstall -q -y 2>/dev/null || true
done
. launch/opencv/use.sh
pip_install() { .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes "$@"; }
# uv fetches, builds and installs side by side and takes a third of pip's time. It knows pip's index, but not all of its
# settings, so that pip has the last word.
uv_install() {
    pip_install -r requirements-uv.lock || return 1
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null)} || index=
    [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    [ -t 2 ] && quiet= || quiet=--quiet
    .venv/bin/python -m uv pip install $quiet --python .venv/bin/python --require-hashes -r "$lock"
}
if [ -n "$wheels" ]; then pip_install --no-index --find-links "$wheels" -r "$wheels/requirements.txt"
else uv_install || { say "uv could not install everything; trying pip"; pip_install -r "$lock"; }
fi || fail "pip could not install everything (its reason is above); fix that and run the same command again
    (where there is no network: run make wheels elsewhere, copy the folder, and give WHEELS=wheels)"
# uv leaves Python's bytecode to the first import: it happens here, on the core that numba leaves free.
.venv/bin/python -c 'import deepspeed, nvidia.dali, sklearn, timm, torchvision' >/dev/null 2>&1 &
# For pipeline.backend=ffcv; half a minute of the first run otherwise.
.venv/bin/python -m pipeline.kernel || say "the kernel of pipeline.backend=ffcv could not be compiled (the reason is above)"
wait
echo "$checksum" > "$stamp"
say "done"
