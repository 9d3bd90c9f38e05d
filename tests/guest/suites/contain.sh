# A plugin under development crashes while a real guest reads from it: the guest loses that answer at
# most, the share beside it notices nothing, and a reload of a mended build goes on under the same
# mount.
LIMIT=120
HOST_KEYS='contain = true'
suite_shares() {
  share a "$WORK/a"
  printf '\n[[device]]\nname = "crash"\nplugin = "%s"\nsocket = "%s"\n[device.options]\ntag = "crash"\ntext = "mended"\n' \
    "$WORK/broken.so" "$WORK/crash.sock" >>"$WORK/virtbay.toml"
  GUEST_SHARES+=("crash=$WORK/crash.sock")
}
# A file system as `virtbay plugin new` begins it, once as it is and once with a mistake.
author() {
  local build
  cmake --install "$BUILD" --component sdk --prefix "$WORK/prefix" &&
    "$BUILD/bin/virtbay" plugin new crash-fs --type fs --dir "$WORK/crash-fs" || return
  for build in mended broken; do
    [ $build = mended ] ||
      sed -i 's/^  void Read(Request request, const fuse_in_header& header) {$/&\n    *static_cast<volatile char*>(nullptr) = 1;/' \
        "$WORK/crash-fs/"*.cc
    cmake -S "$WORK/crash-fs" -B "$WORK/crash-fs/build" -DCMAKE_PREFIX_PATH="$WORK/prefix" \
      -DBUILD_TESTING=OFF && cmake --build "$WORK/crash-fs/build" &&
      cp "$WORK/crash-fs/build/plugins/crash-fs.so" "$WORK/$build.so" || return
  done
  ! cmp -s "$WORK/mended.so" "$WORK/broken.so"
}
suite_prepare() {
  head -c 8000000 /dev/urandom >"$WORK/a/big"
  (cd "$WORK/a" && sha256sum big >"$WORK/job/sums")
  author >"$WORK/author.log" 2>&1
  verdict $? "two builds of a file system"
}
suite_run() {
  local missing
  missing=$(uml_missing)
  [ -z "$missing" ] || { skip "$missing"; return; }
  if grep -q '^VIRTBAY_SANITIZE:[A-Z]*=.' "$BUILD/CMakeCache.txt"; then
    skip "crashes are not contained in a build with a sanitizer"
    return
  fi
  uml_suite
}
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
host_crashed() {
  local i
  for i in $(seq 50); do
    ctl --json inspect crash | grep -q '"crashes": *1\b' && break
    sleep 0.1
  done
  ctl --json inspect crash | grep -q '"needs_reset": *true' &&
    ctl --json inspect a | grep -q '"needs_reset": *false' &&
    grep -q "crash.*SIGSEGV\|SIGSEGV.*crash" "$WORK/virtbay.log"
}
host_mended() {
  "$BUILD/bin/virtbay" reload crash --from "$WORK/mended.so" --control-socket "$WORK/control.sock"
}
guest() {
  check "the file system is there" sh -c "ls $M/crash && test -f $M/crash/hello"
  (cat $M/crash/hello; echo "status $?") >/tmp/cat 2>&1 &
  reader=$!
  check "its crash is its own" host crashed
  check "the share beside it serves on" sh -c "cd $M/a && sha256sum -c $JOB/sums && cp big copy && cmp big copy"
  check "a mended build takes its place" host mended
  wait $reader
  # The request that crashed is answered as failed; a kernel that has only read ahead asks again.
  check "who waited has an answer or an error" grep -qE "^mendedstatus 0$|^status 1$" /tmp/cat
  check "and the next is right, without a remount" same "$(cat $M/crash/hello)" mended
}
