# The guest is killed in the middle of its I/O and another one boots on the same service.
LIMIT=240
suite_run() {
  local missing round fds= first_fds=
  missing=$(uml_missing)
  if [ -n "$missing" ]; then skip "$missing"; return; fi
  make_job
  suite_shares() { share a "$WORK/a"; share b "$WORK/b"; }
  service_file
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts"; return; }
  for round in 1 2 3 4; do
    boot_busy || { guest_kill; break; }
    # A little way into the work: nothing tells how far, and any moment will do.
    sleep 0.$round
    guest_kill
    if ! kill -0 "$VIRTBAY_PID" 2>/dev/null; then
      fail "round $round: virtbay survives"
      break
    fi
    pass "round $round: killed in the middle of its work"
    # A listing needs both devices' answers, so the disconnects have been seen.
    for _ in $(seq 100); do
      "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" list >"$WORK/list" || break
      grep -q ' yes ' "$WORK/list" || break
      sleep 0.1
    done
    fds=$(ls "/proc/$VIRTBAY_PID/fd" | wc -l)
    [ -n "$first_fds" ] || first_fds=$fds
  done
  [ -n "$fds" ] || return
  [ "$fds" -le "$first_fds" ]
  verdict $? "no descriptor is lost ($first_fds, then $fds)"
  # Told to stop while the guest works: requests are finished, sockets go, the status is 0.
  boot_busy || return
  service_check
  guest_kill
}
boot_busy() {
  local end=$((SECONDS + 60))
  boot
  while guest_line $((end - SECONDS)); do
    echo "$LINE" >>"$WORK/console.log"
    case $LINE in *@@FAIL*) break ;; *@@BUSY*) return 0 ;; esac
  done
  fail "the guest did not start its work"
  tail -n 5 "$WORK/console.log"
  return 1
}
guest() {
  fio --name=job --directory=$M/a --size=8m --rw=randrw --bs=4k --ioengine=psync --numjobs=2 \
    --time_based --runtime=60 --fallocate=none >/dev/null 2>&1 &
  ( while :; do $FSPROBE tree make $M/b/t$RANDOM$RANDOM 500 3; done ) &
  while ! [ -s $M/a/job.0.0 ]; do sleep 0.1; done
  echo "@@BUSY"
  wait
}
