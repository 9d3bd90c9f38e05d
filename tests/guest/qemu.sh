# Boots QEMU guests for the suites of run.sh, which sources it after scripts/lib/guest.sh. They are
# ended like the others, by guest_kill.

# qemu_start PROGRAM OPTION...: boots with the console on descriptors GUEST_OUT and GUEST_IN.
qemu_start() {
  local hold
  rm -f "$WORK/in" "$WORK/out"
  mkfifo "$WORK/in" "$WORK/out"
  exec {GUEST_IN}<>"$WORK/in"
  exec {hold}<>"$WORK/out"
  setsid "$@" -nodefaults -no-user-config -nographic -no-reboot -serial stdio \
    <"$WORK/in" >"$WORK/out" 2>&1 {hold}<&- {GUEST_IN}<&- &
  UML_PID=$!
  exec {GUEST_OUT}<"$WORK/out"
  # From here the guest alone holds the other end: its end is the end of the file.
  exec {hold}<&-
}

# For the guest's "@@HOST look", while it waits: what virtbay says of its devices, and what it maps.
host_look() {
  local name
  for name in $(sed -n 's/^name = "\(.*\)"$/\1/p' "$WORK/virtbay.toml"); do
    timeout 30 "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json inspect \
      "$name" >"$WORK/$name.json" || return
  done
  cp "/proc/$VIRTBAY_PID/maps" "$WORK/maps"
}

# backend_check NAME ARGUMENT...: one result, of dma_pools/check.py with these arguments.
backend_check() {
  local name=$1 reason
  shift
  if reason=$("$HERE/dma_pools/check.py" "$@" 2>&1); then
    pass "$name"
  else
    fail "$name: $(tail -n 1 <<<"$reason")"
  fi
}

# amd64_with TOOL...: whether the suite can run. Where only the other architecture is in the way it is
# skipped; a tool that is missing is a failure, so that nobody loses the suite unawares.
amd64_with() {
  local tool missing=
  if [ "$(dpkg --print-architecture 2>/dev/null)" != amd64 ]; then
    skip "only on Debian's amd64"
    return 1
  fi
  PATH=$PATH:/usr/sbin:/sbin
  for tool; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
  done
  [ -n "$missing" ] || return 0
  fail "needs$missing (scripts/setup.sh installs them)"
  return 1
}

# A Debian kernel for x86-64: the cloud kernel's package unpacked in the build directory (no root
# needed). Sets KERNEL and MODULES.
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

# debian_initramfs FILE: busybox, virtbay-guest and virtiofs (or the modules of DRIVERS) for debian_kernel;
# /init loads the modules and goes on with the script on standard input, which has `result STATUS NAME`.
debian_initramfs() {
  local out=$1 tree module path dependency
  tree=$(mktemp -d)
  mkdir -p "$tree/bin" "$tree/lib" "$tree/mnt"
  cp /bin/busybox "$BUILD/bin/virtbay-guest" "$tree/bin/"
  : >"$tree/lib/order"
  # Each with what it needs first; modprobe prints them in the order to load them in. What is built
  # in has none.
  for module in virtio_pci ${DRIVERS:-virtiofs}; do
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
stty -echo 2>/dev/null
# The firmware's escape sequences stand on the console's first line.
echo
result() { if [ "$1" = 0 ]; then echo "@@PASS $2"; else echo "@@FAIL $2"; fi; }
INIT
  cat >>"$tree/init"
  chmod 755 "$tree/init"
  (cd "$tree" && find . | cpio -o -H newc --quiet) >"$out"
  rm -rf "$tree"
}
