# The plugin of a share is reloaded again and again while a guest works on it: fio finds what it
# wrote, a lock is held on, a listing and an unlinked file go on, and nothing of the process grows.
LIMIT=280
NEEDS=fio
RELOADS=${VIRTBAY_RELOADS:-100}
suite_shares() { share a "$WORK/a"; }
suite_prepare() { (cd "$WORK/a" && mkdir many && cd many && seq 5000 | xargs touch); }
# Images, threads, descriptors.
process_size() {
  local images threads fds
  images=$(grep -c "virtbay-plugin-" "/proc/$VIRTBAY_PID/maps")
  # With a sanitizer they stay on purpose.
  ! grep -qE "lib(a|t|ub)san" "/proc/$VIRTBAY_PID/maps" || images=0
  threads=$(ls "/proc/$VIRTBAY_PID/task" | wc -l)
  fds=$(ls "/proc/$VIRTBAY_PID/fd" | wc -l)
  echo "$images $threads $fds"
}
reload() {
  cp "$BUILD/plugins/virtiofs.so" "$WORK/build$1.so"
  "$BUILD/bin/virtbay" reload a --control-socket "$WORK/control.sock" --from "$WORK/build$1.so" >>"$WORK/reload.log"
}
host_once() { reload 0 && reload 1; }
host_measure() { process_size >"$WORK/before"; }
host_reloads() {
  local i
  for i in $(seq "$RELOADS"); do reload $((i % 2)) || return 1; done
  sed -n 's/.*pause \([0-9.]*\) ms.*/\1/p' "$WORK/reload.log" | sort -n |
    awk '{ a[NR] = $1 } END { print NR " reloads, pause p50 " a[int(NR / 2)] " ms, p99 " a[int(NR * 0.99)] " ms" }' >&2
}
host_grown() {
  local now
  now=$(process_size)
  echo "images, threads, descriptors before: $(cat "$WORK/before"), after: $now"
  [ "$now" = "$(cat "$WORK/before")" ]
}
host_locked() { ! flock -n "$WORK/a/locked" true; }
guest() {
  check "two reloads of an idle share" host once
  check "the size of the process" host measure
  echo text >$M/a/locked
  exec 8>$M/a/locked
  check "a lock" flock -n 8
  exec 9<>$M/a/unlinked
  rm $M/a/unlinked
  echo kept >&9
  fio --name=job --directory=$M/a --size=16m --rw=randwrite --bsrange=512-64k --bs_unaligned=1 --ioengine=psync --numjobs=2 \
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --fallocate=none --do_verify=1 --time_based --runtime=600 --loops=1000 \
    >/tmp/fio.log 2>&1 &
  fio=$!
  (while :; do [ "$(ls $M/a/many | wc -l)" = 5000 ] || { echo bad >/tmp/listing; exit 1; }; done) &
  listing=$!
  (i=0; while :; do i=$((i + 1)); mkdir $M/a/d$i && mv $M/a/d$i $M/a/e$i && rmdir $M/a/e$i || { echo bad >/tmp/names; exit 1; }; done) &
  names=$!
  check "reloads while it works" host reloads
  kill -INT $fio
  ended() { wait $fio; cat /tmp/fio.log; ! grep -q "verify: bad\|error=\|err= *[1-9]" /tmp/fio.log; }
  check "fio has found what it wrote" ended
  kill $listing $names
  wait $listing $names
  check "listings were whole" test ! -e /tmp/listing
  check "names were where they were put" test ! -e /tmp/names
  check "the lock is held on" host locked
  kept() { same "$(cat /proc/self/fd/9)" kept; }
  check "an unlinked file is there" kept
  exec 8>&- 9>&-
  check "nothing of the process has grown" host grown
}
