#!/bin/bash
# The Debian packages: made by cpack, accepted by lintian, with the right files in each.
#   package_test.sh BUILD_DIR CPACK SANITIZE
# Exit status 77 where this cannot be: no Debian, no lintian, a build with a sanitizer.
set -u
BUILD=$1 CPACK=$2 SANITIZE=$3
[ -z "$SANITIZE" ] || { echo "skip: a build with a sanitizer is not packaged"; exit 77; }
for tool in dpkg-deb dpkg-shlibdeps lintian fakeroot; do
  command -v $tool >/dev/null || { echo "skip: $tool is not installed"; exit 77; }
done
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
failed=0
complain() { echo "FAIL: $*"; failed=1; }

"$CPACK" -G DEB --config "$BUILD/CPackConfig.cmake" -B "$WORK" >"$WORK/log" 2>&1 || {
  tail -n 20 "$WORK/log"
  exit 1
}
version=$(sed -n 's/^set(CPACK_PACKAGE_VERSION "\(.*\)")$/\1/p' "$BUILD/CPackConfig.cmake")
architecture=$(dpkg --print-architecture)
cd "$WORK" || exit 1
for package in virtbay libvirtbay libvirtbay-dev; do
  deb=${package}_${version}_$architecture.deb
  [ -e "$deb" ] || { complain "no $deb among $(ls ./*.deb)"; continue; }
  dpkg-deb -c "$deb" | awk '{ print $6 }' >"$package.files"
done
[ $failed = 0 ] || exit 1
# has PACKAGE PATTERN; lacks PACKAGE PATTERN.
has() { grep -q -- "$2" "$1.files" || complain "$1 has no $2"; }
lacks() { ! grep -q -- "$2" "$1.files" || complain "$1 has $(grep -- "$2" "$1.files" | head -n 1)"; }
has virtbay ./usr/bin/virtbay$
for plugin in virtiofs virtio-net proxy-net; do has virtbay "virtbay/plugins/$plugin.so$"; done
has virtbay man1/virtbay.1.gz
lacks virtbay include/
lacks virtbay libvirtbay
has libvirtbay 'lib.*/libvirtbay.so.[0-9]'
lacks libvirtbay 'libvirtbay.so$'
lacks libvirtbay bin/
has libvirtbay-dev 'libvirtbay.so$'
has libvirtbay-dev include/virtbay/sdk/abi.h
has libvirtbay-dev include/virtbay/testkit/bay.h
has libvirtbay-dev include/virtbay/host.h
has libvirtbay-dev virtbayConfig.cmake
has libvirtbay-dev pkgconfig/virtbay.pc
has libvirtbay-dev share/virtbay/examples/blk/blk.cc
lacks libvirtbay-dev bin/
dpkg-deb -f libvirtbay_*.deb Depends | grep -q libabsl || complain "libvirtbay depends on no Abseil"
dpkg-deb --ctrl-tarfile libvirtbay_*.deb | tar -t | grep -q shlibs || complain "libvirtbay has no shlibs"
# lintian's own packages have a fixed set of tags; what it says of errors and warnings counts.
lintian --allow-root --fail-on error,warning ./*.deb || complain "lintian does not accept them"
exit $failed
