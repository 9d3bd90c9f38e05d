#!/bin/bash
# Builds the arm64 kernel of the dma_pools suite from Debian's unmodified linux-source-6.1, once per
# version of that package and of kernel.config, and prints the image's path.
#   build-kernel.sh [--path]
# --path: only the path where the image is or would be. The images lie outside the repository, in
# VIRTBAY_KERNEL_CACHE, else in virtbay/ of XDG_CACHE_HOME, else in ~/.cache/virtbay. What runs at the
# same time waits for the one that builds. On failure the end of the log goes to stderr, status 1.
set -u
HERE=$(cd "$(dirname "$0")" && pwd)
SOURCE=/usr/src/linux-source-6.1.tar.xz
CACHE=${VIRTBAY_KERNEL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/virtbay}
export ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-

die() { echo "build-kernel.sh: $1" >&2; exit 1; }

version=$(dpkg-query -W -f '${Version}' linux-source-6.1 2>/dev/null)
[ -n "$version" ] && [ -r "$SOURCE" ] || die "the package linux-source-6.1 is not installed"
for tool in "${CROSS_COMPILE}gcc" make flex bison bc xz; do
  command -v "$tool" >/dev/null || die "$tool is not installed"
done
key=$version-$(sha256sum <"$HERE/kernel.config" | cut -c 1-12)
image=$CACHE/arm64-$key.image
[ "${1:-}" != --path ] || { echo "$image"; exit 0; }

mkdir -p "$CACHE" || die "$CACHE cannot be made"
# The lock goes with the descriptor, also when the build is killed.
exec {lock}>"$CACHE/lock"
flock "$lock" || die "no lock on $CACHE"
[ ! -s "$image" ] || { echo "$image"; exit 0; }

# With what a killed build has left there; under the lock, so nobody uses it.
work=$CACHE/kernel-build
rm -rf "$work"
mkdir -p "$work/source" "$work/object" || die "$work cannot be made"
trap 'rm -rf "$work"' EXIT
log=$CACHE/kernel-build.log

build() {
  # The configuration enables nothing of what is left out; it needs the Kconfig files there.
  tar -C "$work/source" --strip-components=1 --exclude='*/Documentation/*.rst' \
    --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/net/*.[ch]' --exclude='*/sound/*.[ch]' \
    -xf "$SOURCE" || return
  cd "$work/source" || return
  make -s O="$work/object" tinyconfig || return
  ./scripts/kconfig/merge_config.sh -m -O "$work/object" "$work/object/.config" \
    "$HERE/kernel.config" || return
  make -s O="$work/object" olddefconfig || return
  if ! grep -qx CONFIG_DMA_RESTRICTED_POOL=y "$work/object/.config"; then
    echo "the configuration does not hold: no CONFIG_DMA_RESTRICTED_POOL"
    return 1
  fi
  make -s O="$work/object" -j"$(nproc)" Image
}
# Without this script's own lock, and not below a make that has job slots of its own.
if ! (unset MAKEFLAGS MFLAGS MAKELEVEL; exec {lock}>&-; build) >"$log" 2>&1 </dev/null; then
  tail -n 20 "$log" >&2
  die "the kernel could not be built; the whole log is $log"
fi
cp "$work/object/arch/arm64/boot/Image" "$image.$$" && mv "$image.$$" "$image" ||
  die "$image cannot be written"
echo "$image"
