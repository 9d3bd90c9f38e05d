# QEMU without KVM, a Debian kernel, vhost-user-fs-pci: the same bytes on both sides.
LIMIT=150
NEEDS="qemu-system-x86_64 cpio dpkg-deb depmod"

# A Debian kernel: the installed cloud kernel, or its package unpacked in the build directory (no
# root needed). Sets KERNEL and MODULES.
debian_kernel() {
  local dir=$BUILD/guest/kernel package
  if ! ls "$dir"/boot/vmlinuz-* >/dev/null 2>&1; then
    package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null |
      sed -n 's/^ *Depends: *\(linux-image-.*\)$/\1/p' | head -n 1)
    [ -n "$package" ] || return 1
    mkdir -p "$dir.new"
    (cd "$dir.new" && timeout 120 apt-get download -qq "$package" >/dev/null 2>&1 &&
      dpkg-deb -x "$package"_*.deb . && rm -f ./*.deb) || { rm -rf "$dir.new"; return 1; }
    rm -rf "$dir"
    mv "$dir.new" "$dir"
  fi
  KERNEL=$(ls "$dir"/boot/vmlinuz-* | head -n 1)
  MODULES=$(ls -d "$dir"/lib/modules/* | head -n 1)
  # The package has no module index of its own.
  [ -e "$MODULES/modules.dep" ] || depmod -b "$dir" "$(basename "$MODULES")"
}

qemu_initramfs() {
  local out=$1 tree module path dependency
  tree=$(mktemp -d)
  mkdir -p "$tree/bin" "$tree/lib" "$tree/mnt"
  cp /bin/busybox "$tree/bin/"
  : >"$tree/lib/order"
  # Each with what it needs first; modprobe prints them in the order to load them in.
  for module in virtio_pci virtiofs; do
    modprobe -d "$BUILD/guest/kernel" -S "$(basename "$MODULES")" --show-depends "$module" |
      sed -n 's/^insmod //p'
  done | awk '{ print $1 }' | while read -r path; do
    dependency=$(basename "$path")
    grep -qxF "$dependency" "$tree/lib/order" && continue
    cp "$path" "$tree/lib/$dependency"
    echo "$dependency" >>"$tree/lib/order"
  done
  cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/lib/$module"; done </lib/order
# The firmware's escape sequences stand on the console's first line.
echo
result() { if [ "$1" = 0 ]; then echo "@@PASS $2"; else echo "@@FAIL $2"; fi; }
mkdir -p /mnt/a /mnt/b
mount -t virtiofs a /mnt/a; result $? "mount of a"
mount -t virtiofs b /mnt/b; result $? "mount of b"
(cd /mnt/a && sha256sum -c sums) >/dev/null; result $? "checksums of the host's files"
cp /mnt/a/data /mnt/b/copy && sync && cmp /mnt/a/data /mnt/b/copy; result $? "copy from share to share"
mkdir /mnt/b/dir && for i in $(seq 200); do echo $i >/mnt/b/dir/$i; done
[ "$(ls /mnt/b/dir | wc -l)" = 200 ]; result $? "200 files"
umount /mnt/a && umount /mnt/b; result $? "umount"
echo "@@DONE 0"
poweroff -f
INIT
  chmod 755 "$tree/init"
  (cd "$tree" && find . | cpio -o -H newc --quiet) >"$out"
  rm -rf "$tree"
}

suite_run() {
  [ -x /bin/busybox ] || { skip "busybox is not installed (package busybox-static)"; return; }
  PATH=$PATH:/usr/sbin:/sbin
  debian_kernel || { skip "no Debian kernel could be had"; return; }
  qemu_initramfs "$WORK/initramfs.cpio"
  suite_shares() { share a "$WORK/a"; share b "$WORK/b" cache '"always"'; }
  service_file
  head -c 30000000 /dev/urandom >"$WORK/a/data"
  head -c 12345 /dev/urandom >"$WORK/a/odd"
  (cd "$WORK/a" && sha256sum data odd >sums)
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts"; return; }
  rm -f "$WORK/in" "$WORK/out"
  mkfifo "$WORK/in" "$WORK/out"
  exec {GUEST_IN}<>"$WORK/in"
  local hold
  exec {hold}<>"$WORK/out"
  setsid qemu-system-x86_64 -machine q35,accel=tcg,memory-backend=mem -cpu max -m 256M -smp 2 \
    -object memory-backend-memfd,id=mem,size=256M,share=on \
    -chardev socket,id=ca,path="$WORK/a.sock" -device vhost-user-fs-pci,chardev=ca,tag=a \
    -chardev socket,id=cb,path="$WORK/b.sock" -device vhost-user-fs-pci,chardev=cb,tag=b,queue-size=1024 \
    -kernel "$KERNEL" -initrd "$WORK/initramfs.cpio" -append "console=ttyS0 quiet panic=-1" \
    -nodefaults -no-user-config -nographic -no-reboot -serial stdio \
    <"$WORK/in" >"$WORK/out" 2>&1 {hold}<&- {GUEST_IN}<&- &
  UML_PID=$!
  exec {GUEST_OUT}<"$WORK/out"
  exec {hold}<&-
  guest_run "$LIMIT"
  cmp -s "$WORK/a/data" "$WORK/b/copy"
  verdict $? "the host has the guest's copy"
  [ "$(cat "$WORK/b/dir/200")" = 200 ]
  verdict $? "the host has the guest's files"
  service_check
}
