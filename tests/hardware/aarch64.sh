#!/usr/bin/env bash
# Runs the core's tests on the processor of a Raspberry Pi, emulated: Debian's own files for arm64,
# whose programs QEMU translates one by one. Slow: a quarter of an hour for all of tests/core.
#   tests/hardware/aarch64.sh FOLDER [TEST]...
set -euo pipefail
folder=$(realpath -m "$1")
shift
for tool in debootstrap qemu-aarch64-static; do
    command -v "$tool" >/dev/null || {
        echo "make aarch64: needs $tool (Debian: apt-get install debootstrap qemu-user-static)" >&2
        exit 1
    }
done
root="$folder/rootfs" site="$folder/site" pip=".venv/bin/python -m pip install -qq --upgrade"
mkdir -p "$folder"
if [ ! -e "$folder/unpacked" ]; then
    debootstrap --foreign --arch=arm64 --variant=minbase --include=python3,ca-certificates \
        bookworm "$root" >/dev/null
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root" # their programs run from here: nothing has to be set up
    done
    touch "$folder/unpacked"
fi
$pip --target "$site" --platform manylinux2014_aarch64 --only-binary=:all: --python-version 3.11 \
    --group test anyio
$pip --target "$site" --no-deps .
PYTHONPATH="$site" qemu-aarch64-static -L "$root" "$root/usr/bin/python3.11" -m pytest -q \
    -p no:cacheprovider --timeout 1200 "${@:-tests/core}"
