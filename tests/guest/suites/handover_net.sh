# As reload_net, but the whole process is replaced: the TAP and the flows of proxy-net go along.
. "$HERE/suites/reload_net.sh"
HANDOVERS=${VIRTBAY_HANDOVERS:-20}
HOST_KEYS="state-dir = \"$WORK/state\""
replace() {
  local old=$VIRTBAY_PID
  SERVICE_WRAP=(nsenter -t "$old" -n)
  if ! service_start "$WORK" "$WORK/virtbay.toml"; then
    VIRTBAY_PID=$old
    return 1
  fi
  wait "$old"
}
both() { replace; }
host_reloads() {
  local i
  for i in $(seq "$HANDOVERS"); do
    replace || return 1
    [ $((i % 10)) != 0 ] || host_forward || return 1
  done
}
