#!/bin/bash
# DPDK's virtio driver (testpmd over net_virtio_user) against virtbay's virtio-net and proxy-net: an
# independent front-end, and a fast one.
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

# serve TYPE OPTION...
serve() {
  local type=$1
  shift
  rm -f "$WORK/ready"
  mkfifo "$WORK/ready"
  exec {hold}<>"$WORK/ready"
  "$BUILD/bin/virtbay" serve "$type" --socket-path="$WORK/net.sock" --name=net \
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

# pmd_begin VDEV_OPTIONS MODE START [TESTPMD_OPTION]...: a testpmd that forwards.
pmd_begin() {
  local vdev=$1 mode=$2 start=$3
  shift 3
  RX=0 TX=0
  mkfifo "$WORK/in"
  exec {commands}<>"$WORK/in"
  XDG_RUNTIME_DIR=$WORK timeout 80 "$TESTPMD" --lcores '0@0,1@0' --no-pci --no-huge -m 256 \
    --iova-mode=va --file-prefix="vb$$" --no-telemetry \
    --vdev "net_virtio_user0,path=$WORK/net.sock,queue_size=256,$vdev" -- -i --forward-mode="$mode" \
    --nb-cores=1 --total-num-mbufs=8192 "$@" <"$WORK/in" {commands}<&- >"$WORK/testpmd" 2>&1 &
  PMD=$!
  echo "$start" >&"$commands"
}

# What the port has counted as far as it has said so, to RX and TX.
pmd_count() {
  RX=$(grep -ao 'RX-packets: [0-9]*' "$WORK/testpmd" | tail -n 1 | tr -dc 0-9)
  TX=$(grep -ao 'TX-packets: [0-9]*' "$WORK/testpmd" | tail -n 1 | tr -dc 0-9)
  RX=${RX:-0} TX=${TX:-0}
}

# Its exit status, and all that it has counted.
pmd_end() {
  { echo stop; echo quit; } >&"$commands"
  wait "$PMD"
  local status=$?
  exec {commands}<&-
  rm -f "$WORK/in"
  pmd_count
  return $status
}

# pmd VDEV_OPTIONS MODE START [TESTPMD_OPTION]...: forwards until the port has seen 50,000 packets
# in the direction that counts.
pmd() {
  local mode=$2 tries=0
  pmd_begin "$@"
  while [ $tries -lt 100 ] && kill -0 "$PMD" 2>/dev/null; do
    tries=$((tries + 1))
    echo "show port stats 0" >&"$commands"
    read -r -t 0.5 <>"$WORK/ready"
    pmd_count
    if [ "$mode" = txonly ]; then [ "$TX" -gt 50000 ] && break; else [ "$RX" -gt 50000 ] && break; fi
  done
  pmd_end
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

serve virtio-net --backend=loop --queue-pairs=2
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

serve virtio-net --backend=null
for packed in 0 1; do
  before=$(counter tx_frames)
  pmd "mrg_rxbuf=1,packed_vq=$packed" txonly "start"
  [ $? = 0 ] && [ "$TX" -gt 50000 ] && [ "$(($(counter tx_frames) - before))" -gt 50000 ]
  verdict $? "null, 64-byte frames, packed $packed"
done
ends

# proxy-net: testpmd answers every datagram of a forwarded port (5tswap), the client on the host looks
# at each answer; then it sends to a socket of the host, from every queue.
GATEWAY=52:55:0a:00:02:02
echoes() {
  python3 - "$1" <<'PY'
import os, socket, sys
port, wanted, window = int(sys.argv[1]), 20000, 16
peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.settimeout(1)
peer.connect(("127.0.0.1", port))
sent, good, silent, waiting = 0, 0, 0, {}
# Until the driver is up datagrams are lost, as some may be later; most are not.
while good < wanted and silent < 30:
    while len(waiting) < window:
        text = sent.to_bytes(4, "big") + os.urandom(16 + sent % 1400)
        waiting[text[:4]] = text
        peer.send(text)
        sent += 1
    try:
        text = peer.recv(2048)
        silent = 0
        if waiting.pop(text[:4], None) == text:
            good += 1
    except TimeoutError:
        silent += 1
        waiting.clear()
print(f"{good} of {sent} came back")
sys.exit(0 if good == wanted and sent < wanted * 2 else 1)
PY
}
sink() {
  python3 - "$WORK/port" <<'PY'
import os, socket, sys
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
sink.bind(("127.0.0.1", 0))
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(sink.getsockname()[1]))
os.rename(sys.argv[1] + ".new", sys.argv[1])
sink.settimeout(60)
ports = set()
for _ in range(20000):
    ports.add(sink.recvfrom(2048)[1][1])
print("ports", len(ports))
PY
}
proxy() {
  rm -f "$WORK/port"
  sink >"$WORK/sink" 2>&1 &
  SINK=$!
  until [ -e "$WORK/port" ] || ! kill -0 $SINK; do read -r -t 0.1 <>"$WORK/ready"; done
  serve proxy-net --ipv6=off --forward udp:127.0.0.1:0:7 --queue-pairs=2 \
    --host-ports="udp:$(cat "$WORK/port")"
  FORWARD=$("$BUILD/bin/virtbay" ctl --control-socket="$WORK/control.sock" device net forward-list)
  FORWARD=$(cut -d: -f3 <<<"$FORWARD")
}
queue_requests() {
  "$BUILD/bin/virtbay" ctl --control-socket="$WORK/control.sock" --json inspect net |
    python3 -c "import json, sys; print(json.load(sys.stdin)['queues'][$1]['requests'])"
}
for queues in 1 2; do
  for merge in 1 0; do
    for packed in 0 1; do
      proxy
      name="mergeable $merge, packed $packed, $queues queue pairs"
      pmd_begin "mrg_rxbuf=$merge,packed_vq=$packed,queues=$queues" 5tswap start \
        --rxq=$queues --txq=$queues
      timeout 60 bash -c "$(declare -f echoes); echoes $FORWARD" >"$WORK/echoes" 2>&1
      status=$?
      pmd_end && [ $status = 0 ] && [ "$RX" -ge 20000 ] && [ "$TX" -ge 20000 ]
      verdict $? "proxy-net, echoes, $name"
      [ $status = 0 ] || sed 's/^/    /' "$WORK/echoes"
      pmd "mrg_rxbuf=$merge,packed_vq=$packed,queues=$queues" txonly start \
        --rxq=$queues --txq=$queues --eth-peer=0,$GATEWAY --tx-ip=10.0.2.15,10.0.2.254 \
        --tx-udp=9,"$(cat "$WORK/port")"
      [ $? = 0 ] && [ "$TX" -gt 50000 ] && wait $SINK && grep -q "ports 1$" "$WORK/sink" &&
        { [ $queues = 1 ] || [ "$(queue_requests 3)" -gt 0 ]; }
      verdict $? "proxy-net, to the host, $name"
      kill $SINK 2>/dev/null
      ends
    done
  done
done
exit $failed
