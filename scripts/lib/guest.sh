# Runs a virtbay service and a user-mode Linux guest for the demo and the real-guest tests.
# Sourced by bash scripts, which set BUILD (the build directory) before they call anything.
# Every process that is started here runs in a process group of its own and is ended through it:
# user-mode Linux leaves helper processes behind when only its first one is killed.

GUEST_LIB=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VIRTBAY_PID=
UML_PID=
GUEST_DEVICES=()
SERVICE_WRAP=() # the command that runs the service, e.g. unshare -n

# Says why there can be no user-mode Linux guest, or nothing when there can.
uml_missing() {
  if ! command -v linux.uml >/dev/null; then
    echo "user-mode Linux is not installed (package user-mode-linux)"
  elif [ -z "$(uml_modules)" ]; then
    echo "user-mode Linux has no virtiofs module"
  elif [ ! -x /bin/busybox ]; then
    echo "busybox is not installed (package busybox-static)"
  elif ! command -v cpio >/dev/null; then
    echo "cpio is not installed"
  fi
}

# The directory of the kernel's modules.
uml_modules() {
  local module
  for module in /usr/lib/uml/modules/*/kernel/fs/fuse/virtiofs.ko; do
    [ -e "$module" ] && dirname "$module" && return
  done
}

# A directory for the guest's memory: user-mode Linux maps a file there, so it must be large enough
# and allow execution.
uml_memory_dir() {
  local dir free
  for dir in /dev/shm "${TMPDIR:-/tmp}" /tmp; do
    [ -w "$dir" ] || continue
    free=$(df -Pk "$dir" | awk 'NR == 2 { print $4 }')
    if [ "${free:-0}" -gt 1048576 ] && ! findmnt -nT "$dir" -o OPTIONS | grep -qw noexec; then
      echo "$dir"
      return
    fi
  done
  echo "${TMPDIR:-/tmp}"
}

# make_initramfs FILE: busybox, two modules and the init script.
make_initramfs() {
  local out=$1 modules tree
  modules=$(uml_modules)
  tree=$(mktemp -d)
  mkdir -p "$tree/bin" "$tree/lib"
  cp /bin/busybox "$tree/bin/busybox"
  cp "$modules/fuse.ko" "$modules/virtiofs.ko" "$tree/lib/"
  cp "$GUEST_LIB/guest-init.sh" "$tree/init"
  chmod 755 "$tree/init"
  (cd "$tree" && find . | cpio -o -H newc --quiet) >"$out.$$" && mv "$out.$$" "$out"
  rm -rf "$tree"
}

# service_start DIR FILE: serves FILE; its log goes to DIR/virtbay.log. Returns when front-ends can
# connect.
service_start() {
  local dir=$1 config=$2 ready
  rm -f "$dir/ready"
  mkfifo "$dir/ready"
  # Opened for both directions, so that opening it never waits for the service.
  exec {ready}<>"$dir/ready"
  TSAN_OPTIONS="suppressions=$GUEST_LIB/tsan.supp ${TSAN_OPTIONS:-}" \
    setsid "${SERVICE_WRAP[@]}" "$BUILD/bin/virtbay" run "$config" --ready-fd=9 \
    9>"$dir/ready" {ready}<&- </dev/null >>"$dir/virtbay.log" 2>&1 &
  VIRTBAY_PID=$!
  local waited=0
  while ! read -r -t 1 -u "$ready"; do
    waited=$((waited + 1))
    if ! kill -0 "$VIRTBAY_PID" 2>/dev/null || [ $waited -gt 60 ]; then
      exec {ready}<&-
      echo "virtbay did not start:" >&2
      tail -n 5 "$dir/virtbay.log" >&2
      service_kill
      return 1
    fi
  done
  exec {ready}<&-
}

# Ends the service as a user would; its exit status is returned.
service_stop() {
  local status
  [ -n "$VIRTBAY_PID" ] || return 0
  kill -TERM "$VIRTBAY_PID" 2>/dev/null
  wait "$VIRTBAY_PID" 2>/dev/null
  status=$?
  VIRTBAY_PID=
  return $status
}

service_kill() {
  [ -n "$VIRTBAY_PID" ] || return 0
  kill -KILL -- "-$VIRTBAY_PID" 2>/dev/null
  wait "$VIRTBAY_PID" 2>/dev/null
  VIRTBAY_PID=
}

# guest_start DIR INITRAMFS JOBDIR MEMORY TAG=SOCKET...: boots; the guest's console is read from
# descriptor GUEST_OUT and written to GUEST_IN. GUEST_DEVICES: more devices, SOCKET:VIRTIO-ID each.
guest_start() {
  local dir=$1 initramfs=$2 job=$3 memory=$4
  shift 4
  local tags="" devices=() share
  for share in "${GUEST_DEVICES[@]}"; do devices+=("virtio_uml.device=$share"); done
  for share in "$@"; do
    tags=${tags:+$tags,}${share%%=*}
    devices+=("virtio_uml.device=${share#*=}:26")
  done
  rm -f "$dir/in" "$dir/out"
  mkfifo "$dir/in" "$dir/out"
  exec {GUEST_IN}<>"$dir/in"
  local hold
  exec {hold}<>"$dir/out"
  # See tests/guest/uml_xstate.c and uml_events.c; a build without the tests does without it.
  local preload=$BUILD/bin/uml_preload.so
  [ -e "$preload" ] || preload=
  TMPDIR=$(uml_memory_dir) LD_PRELOAD=$preload setsid linux.uml mem="$memory" initrd="$initramfs" uml_dir="$dir" \
    umid=guest "${devices[@]}" vb_job="$job" vb_tags="$tags" quiet loglevel=4 con=null \
    con0=fd:0,fd:1 <"$dir/in" >"$dir/out" 2>&1 {hold}<&- {GUEST_IN}<&- &
  UML_PID=$!
  exec {GUEST_OUT}<"$dir/out"
  # From here the guest alone holds the other end: its end is the end of the file.
  exec {hold}<&-
}

# Reads one line of the console into LINE. 0: a line, 1: the guest is gone, 2: the time is over.
guest_line() {
  local left=$1 status
  [ "$left" -gt 0 ] || return 2
  IFS= read -r -t "$left" -u "$GUEST_OUT" LINE
  status=$?
  LINE=${LINE%$'\r'}
  [ $status = 0 ] && return 0
  [ $status -gt 128 ] && return 2
  [ -n "$LINE" ] && return 0
  return 1
}

# Ends the guest and all its helper processes.
guest_kill() {
  if [ -n "$UML_PID" ]; then
    kill -KILL -- "-$UML_PID" 2>/dev/null
    wait "$UML_PID" 2>/dev/null
    UML_PID=
  fi
  [ -n "${GUEST_IN:-}" ] && exec {GUEST_IN}>&- && GUEST_IN=
  [ -n "${GUEST_OUT:-}" ] && exec {GUEST_OUT}<&- && GUEST_OUT=
  return 0
}

all_kill() {
  guest_kill
  service_kill
}
