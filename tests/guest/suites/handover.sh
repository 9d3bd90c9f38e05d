# The whole process is replaced by another one again and again while a guest works on its shares:
# fio finds what it wrote, git its objects, a lock is held on, a listing and an unlinked file go on.
LIMIT=400
NEEDS="fio git"
HANDOVERS=${VIRTBAY_HANDOVERS:-20}
HOST_KEYS="state-dir = \"$WORK/state\""
suite_shares() {
  share a "$WORK/a"
  share b "$WORK/b" cache '"never"'
}
suite_prepare() { (cd "$WORK/a" && mkdir many && cd many && seq 5000 | xargs touch); }
process_size() {
  echo "$(grep -c "virtbay-plugin-" "/proc/$VIRTBAY_PID/maps") $(ls "/proc/$VIRTBAY_PID/task" | wc -l)"
}
replace() {
  local old=$VIRTBAY_PID status
  if ! service_start "$WORK" "$WORK/virtbay.toml"; then
    VIRTBAY_PID=$old
    return 1
  fi
  wait "$old"
  status=$?
  [ "$status" = 0 ] || echo "the process before ended with $status"
  return "$status"
}
host_once() { replace && replace; }
host_measure() { process_size >"$WORK/before"; }
host_handovers() {
  local i
  for i in $(seq "$HANDOVERS"); do
    replace || return 1
    # For the guest, which is slow, to get on with its work.
    sleep 0.7
  done
  sed -n 's/.*taken over: .*pause \([0-9.]*\) ms.*/\1/p' "$WORK/virtbay.log" | sort -n |
    awk '{ a[NR] = $1 } END { print NR " devices taken over, pause p50 " a[int((NR + 1) / 2)] " ms, longest " a[NR] " ms" }' |
    tee "$WORK/pauses"
}
host_told() { cat "$WORK/pauses" >&2; "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" list; }
host_same() {
  local now
  now=$(process_size)
  echo "images, threads before: $(cat "$WORK/before"), after: $now"
  [ "$now" = "$(cat "$WORK/before")" ]
}
host_locked() { ! flock -n "$WORK/a/locked" true; }
host_fsck() { git -c safe.directory='*' -C "$WORK/b/copy" fsck --full; }
guest() {
  check "two handovers of idle shares" host once
  check "the size of the process" host measure
  echo text >$M/a/locked
  exec 8>$M/a/locked
  check "a lock" flock -n 8
  exec 9<>$M/a/unlinked
  rm $M/a/unlinked
  echo kept >&9
  fio --name=job --directory=$M/a --size=4m --rw=randwrite --bsrange=512-64k --bs_unaligned=1 --ioengine=psync --numjobs=2 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fallocate=none --do_verify=1 --time_based --runtime=600 --loops=1000 \
    >/tmp/fio.log 2>&1 &
  fio=$!
  (while [ ! -e /tmp/stop ]; do [ "$(ls $M/a/many | wc -l)" = 5000 ] || { echo bad >/tmp/listing; exit 1; }; done) &
  listing=$!
  (
    git init -q -b main $M/b/repo && cd $M/b/repo || exit 1
    n=0
    while [ ! -e /tmp/stop ]; do
      n=$((n + 1))
      mkdir -p d$((n % 7)) && echo $n >d$((n % 7))/f$n && echo $n >>all && git add . && git commit -qm $n &&
        git mv all other && git mv other all || { echo bad >/tmp/git; exit 1; }
    done
    [ $n -ge 3 ] || echo "$n commits" >/tmp/git
  ) >/tmp/git.log 2>&1 &
  git=$!
  check "handovers while it works" host handovers
  touch /tmp/stop
  kill -INT $fio
  ended() { wait $fio; cat /tmp/fio.log; ! grep -q "verify: bad\|error=\|err= *[1-9]" /tmp/fio.log; }
  check "fio has found what it wrote" ended
  wait $listing $git
  check "listings were whole" test ! -e /tmp/listing
  committed() { cat /tmp/git.log; ! cat /tmp/git 2>/dev/null; }
  check "git has noticed nothing" committed
  check "clone" git clone -q --no-hardlinks $M/b/repo $M/b/copy
  check "fsck on the host" host fsck
  check "the lock is held on" host locked
  kept() { same "$(cat /proc/self/fd/9)" kept; }
  check "an unlinked file is there" kept
  exec 8>&- 9>&-
  check "it answers on its control socket" host told
  check "the process is no larger" host same
}
