# Two shares of one process, over packed and over split rings: the same bytes on both sides, each way.
LIMIT=90
suite_shares() {
  share a "$WORK/a"
  share b "$WORK/b" .packed-ring false
}
suite_prepare() {
  head -c 20000000 /dev/urandom >"$WORK/a/from-host"
  (cd "$WORK/a" && sha256sum from-host >"$WORK/job/sums")
  mkdir -p "$WORK/a/dir/sub"
  echo text >"$WORK/a/dir/sub/file"
}
host_checks_copy() { cmp "$WORK/a/from-host" "$WORK/b/copy"; }
host_sees_append() { [ "$(cat "$WORK/a/log")" = "one
two" ]; }
# What the guest's own driver took.
ring_layout() {
  "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json inspect "$1" |
    grep -q "\"layout\": *\"$2\""
}
host_layouts() { ring_layout a packed && ring_layout b split; }
host_stats() {
  "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json stats &&
    "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" stats --prometheus |
    grep -q '^virtbay_queue_requests_total{device="a",queue="[0-9]*"} [1-9]'
}
guest() {
  check "a file of the host has its checksum" sh -c "cd $M/a && sha256sum -c $JOB/sums"
  check "copy from share to share" cp $M/a/from-host $M/b/copy
  check "both sides have the same bytes" host checks_copy
  check "a small file" same "$(cat $M/a/dir/sub/file)" text
  check "append" sh -c "echo one >$M/a/log; echo two >>$M/a/log"
  check "the host sees appended lines" host sees_append
  check "statfs" sh -c "df $M/a $M/b"
  check "mode and times" sh -c "chmod 640 $M/a/log && touch -d @1000000000.5 $M/a/log &&
    [ \"\$(stat -c %a:%.1Y $M/a/log)\" = 640:1000000000.5 ]"
  check "the control socket counts" host stats
  check "one guest drives both ring layouts" host layouts
  check "remount" sh -c "umount $M/b && mount -t virtiofs b $M/b && test -s $M/b/copy"
}
