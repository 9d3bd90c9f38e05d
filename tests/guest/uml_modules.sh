#!/bin/bash
# Builds the modules that Debian's user-mode Linux is packaged without (virtio-rng, 9P over virtio)
# from Debian's linux-source-6.1 and the kernel's own configuration, once per version of either and
# of this script, and prints the directory that they are in.
# All of 9P is built, so that the modules among themselves are of one version; what they use of the
# kernel they share with every module of its series, whose version they are given.
# They lie outside the repository, see dma_pools/build-kernel.sh. What runs at the same time waits for
# the one that builds. On failure the end of the log goes to stderr, status 1.
set -u
SOURCE=/usr/src/linux-source-6.1.tar.xz
CONFIG=/usr/share/doc/user-mode-linux/config.gz
CACHE=${VIRTBAY_KERNEL_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/virtbay}
MODULES=(net/9p/9pnet.ko net/9p/9pnet_virtio.ko fs/9p/9p.ko drivers/char/hw_random/virtio-rng.ko)

die() { echo "uml_modules.sh: $1" >&2; exit 1; }

source_version=$(dpkg-query -W -f '${Version}' linux-source-6.1 2>/dev/null)
[ -n "$source_version" ] && [ -r "$SOURCE" ] || die "the package linux-source-6.1 is not installed"
[ -r "$CONFIG" ] || die "the package user-mode-linux has no configuration here"
# Of the kernel: the name of its directory of modules.
release=$(ls /usr/lib/uml/modules 2>/dev/null | sort -V | tail -n 1)
case $release in
  6.1.*) ;;
  *) die "user-mode Linux is of version ${release:-none}, the source of 6.1" ;;
esac
for tool in gcc make flex bison bc xz; do
  command -v "$tool" >/dev/null || die "$tool is not installed"
done
directory=$CACHE/uml-$release-$source_version-$(cat "$CONFIG" "$0" | sha256sum | cut -c 1-12)
mkdir -p "$CACHE" || die "$CACHE cannot be made"
# The lock goes with the descriptor, also when the build is killed.
exec {lock}>"$CACHE/uml-lock"
flock "$lock" || die "no lock on $CACHE"
[ ! -d "$directory" ] || { echo "$directory"; exit 0; }

work=$CACHE/uml-build
rm -rf "$work"
mkdir -p "$work/source" "$work/object" "$work/result" || die "$work cannot be made"
trap 'rm -rf "$work"' EXIT
log=$CACHE/uml-build.log

um_make() { make -s -C "$work/source" ARCH=um O="$work/object" -j"$(nproc)" KBUILD_MODPOST_WARN=1 "$@"; }

build() {
  local module
  # The configuration enables nothing of what is left out; it needs the Kconfig files there.
  xz -T0 -dc "$SOURCE" | tar -C "$work/source" --strip-components=1 -x --exclude='*/Documentation/*.rst' \
    --exclude='*/drivers/gpu/*.[ch]' --exclude='*/drivers/net/*.[ch]' --exclude='*/sound/*.[ch]' ||
    return
  sed -i "s/^SUBLEVEL = .*/SUBLEVEL = ${release#6.1.}/" "$work/source/Makefile" || return
  # Without FSCACHE 9P needs one module less.
  zcat "$CONFIG" | sed -e 's/^# CONFIG_NET_9P_VIRTIO is not set/CONFIG_NET_9P_VIRTIO=m/' \
    -e 's/^# CONFIG_HW_RANDOM_VIRTIO is not set/CONFIG_HW_RANDOM_VIRTIO=m/' \
    -e 's/^CONFIG_9P_FSCACHE=y/# CONFIG_9P_FSCACHE is not set/' >"$work/object/.config" || return
  um_make olddefconfig && um_make modules_prepare || return
  for module in "${MODULES[@]}"; do
    um_make "M=$(dirname "$module")" modules && cp "$work/object/$module" "$work/result/" || return
  done
}
# Without this script's own lock, and not below a make that has job slots of its own.
if ! (unset MAKEFLAGS MFLAGS MAKELEVEL; exec {lock}>&-; build) >"$log" 2>&1 </dev/null; then
  tail -n 20 "$log" >&2
  die "the modules could not be built; the whole log is $log"
fi
mv "$work/result" "$directory" || die "$directory cannot be made"
echo "$directory"
