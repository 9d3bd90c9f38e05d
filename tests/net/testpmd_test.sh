#!/bin/bash
# DPDK's virtio driver (testpmd over net_virtio_user) against virtbay's virtio-net: an independent
# front-end, and a fast one.
#   testpmd_test.sh BUILD_DIR
# Exit status: 0, 1, or 77 when there is no testpmd.
set -u
BUILD=${1:?usage: testpmd_test.sh BUILD_DIR}
TESTPMD=$(command -v dpdk-testpmd || echo /usr/bin/dpdk-testpmd)
if [ ! -x "$TESTPMD" ]; then
  echo "skip: no dpdk-testpmd (package dpdk-dev)"
  exit 77
fi
WORK=$(mktemp -d)
SERVICE=
failed=0
cleanup() {
  [ -n "$SERVICE" ] && kill -KILL "$SERVICE" 2>/dev/null
  rm -rf "$WORK"
}
trap cleanup EXIT

serve() {
  rm -f "$WORK/ready"
  mkfifo "$WORK/ready"
  exec {hold}<>"$WORK/ready"
  "$BUILD/bin/virtbay" serve virtio-net --socket-path="$WORK/net.sock" --name=net \
    --control-socket="$WORK/control.sock" --ready-fd=9 "$@" \
    9>"$WORK/ready" {hold}<&- </dev/null >"$WORK/log" 2>&1 &
  SERVICE=$!
  if ! read -r -t 30 -u "$hold"; then
    echo "FAIL virtbay did not start"
    cat "$WORK/log"
    exit 1
  fi
  exec {hold}<&-
}

counter() {
  "$BUILD/bin/virtbay" ctl --control-socket="$WORK/control.sock" --json inspect net |
    python3 -c "import json, sys; print(json.load(sys.stdin)['metrics']['$1'])"
}

# pmd VDEV_OPTIONS MODE START [TESTPMD_OPTION]...: forwards until the port has seen 50,000 packets
# in the direction that counts; their numbers go to RX and TX.
pmd() {
  local vdev=$1 mode=$2 start=$3
  shift 3
  RX=0 TX=0
  mkfifo "$WORK/in"
  exec {commands}<>"$WORK/in"
  XDG_RUNTIME_DIR=$WORK timeout 80 "$TESTPMD" --lcores '0@0,1@0' --no-pci --no-huge -m 256 \
    --iova-mode=va --file-prefix="vb$$" --no-telemetry \
    --vdev "net_virtio_user0,path=$WORK/net.sock,queue_size=256,$vdev" -- -i --forward-mode="$mode" \
    --nb-cores=1 --total-num-mbufs=8192 "$@" <"$WORK/in" {commands}<&- >"$WORK/testpmd" 2>&1 &
  local pid=$! tries=0
  echo "$start" >&"$commands"
  while [ $tries -lt 100 ] && kill -0 $pid 2>/dev/null; do
    tries=$((tries + 1))
    echo "show port stats 0" >&"$commands"
    read -r -t 0.5 <>"$WORK/ready"
    RX=$(grep -ao 'RX-packets: [0-9]*' "$WORK/testpmd" | tail -n 1 | tr -dc 0-9)
    TX=$(grep -ao 'TX-packets: [0-9]*' "$WORK/testpmd" | tail -n 1 | tr -dc 0-9)
    RX=${RX:-0} TX=${TX:-0}
    if [ "$mode" = txonly ]; then [ "$TX" -gt 50000 ] && break; else [ "$RX" -gt 50000 ] && break; fi
  done
  { echo stop; echo quit; } >&"$commands"
  wait $pid
  local status=$?
  exec {commands}<&-
  rm -f "$WORK/in"
  return $status
}

verdict() {
  if [ "$1" = 0 ]; then
    echo "ok   $2 (rx $RX, tx $TX)"
  else
    echo "FAIL $2 (rx $RX, tx $TX)"
    failed=1
    tail -n 20 "$WORK/testpmd" | sed 's/^/    /'
    tail -n 5 "$WORK/log" | sed 's/^/    /'
  fi
}

ends() {
  kill -TERM "$SERVICE"
  wait "$SERVICE" || { echo "FAIL virtbay's exit status"; failed=1; }
  SERVICE=
}

serve --backend=loop --queue-pairs=2
for merge in 1 0; do
  for packed in 0 1; do
    name="loop, mergeable $merge, packed $packed"
    pmd "mrg_rxbuf=$merge,packed_vq=$packed" io "start tx_first 4"
    [ $? = 0 ] && [ "$RX" -gt 50000 ] && [ "$(counter rx_drops_no_buffers)" -ge 0 ]
    verdict $? "$name"
  done
done
pmd "mrg_rxbuf=1,queues=2" io "start tx_first 4" --rxq=2 --txq=2
[ $? = 0 ] && [ "$RX" -gt 50000 ]
verdict $? "loop, two queue pairs"
ends

serve --backend=null
for packed in 0 1; do
  before=$(counter tx_frames)
  pmd "mrg_rxbuf=1,packed_vq=$packed" txonly "start"
  [ $? = 0 ] && [ "$TX" -gt 50000 ] && [ "$(($(counter tx_frames) - before))" -gt 50000 ]
  verdict $? "null, 64-byte frames, packed $packed"
done
ends
exit $failed
