# proxy-net under load, beside a share in the same process: large transfers with checksums, a
# thousand connections at once, and a flood while fio verifies what it wrote to the share.
# VIRTBAY_TRANSFER_MIB: how much each transfer moves.
LIMIT=600
NEEDS="unshare nsenter ip iperf3 curl fio python3"
SERVICE_WRAP=(unshare -n)
TRANSFER_MIB=${VIRTBAY_TRANSFER_MIB:-1024}
suite_shares() {
  share a "$WORK/a"
  share w "$WORK/w" allow-direct-io true
  printf '\n[[device]]\nname = "net"\nplugin = "proxy-net"\nsocket = "%s"\n[device.options]\n%s' \
    "$WORK/net.sock" "mac = \"52:54:00:12:34:56\"
ipv6 = \"on\"
" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/net.sock:1")
}
suite_prepare() {
  head -c "$((TRANSFER_MIB << 20))" /dev/urandom >"$WORK/a/big"
  sha256sum <"$WORK/a/big" | cut -d ' ' -f 1 >"$WORK/a/big.sum"
  cp "$HERE/net_load.py" "$WORK/job/"
}
inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json "$@"; }
host_wire() {
  inside ip link set lo up && inside ip addr add 198.18.0.1/32 dev lo &&
    inside ip -6 addr add 2001:db8::1/128 dev lo nodad || return
  (ulimit -n 8192 && exec setsid timeout "$LIMIT" nsenter -t "$VIRTBAY_PID" -n \
    python3 "$HERE/net_load.py" serve "$WORK/a" 80) </dev/null >"$WORK/server.log" 2>&1 &
  echo $! >"$WORK/server.pid"
  inside iperf3 -s -D -I "$WORK/iperf.pid" --logfile "$WORK/iperf.log" &&
    for _ in 1 2 3 4 5 6 7 8 9 10; do
      inside curl -s -o /dev/null http://198.18.0.1/nothing && return
      sleep 1
    done
}
# lost NAME...: none of these, and no frame was dropped for want of memory, up to here.
lost() {
  ctl inspect net >"$WORK/net.json" && python3 - "$WORK/net.json" "$@" <<'PY'
import json, sys
metrics = json.load(open(sys.argv[1]))["metrics"]
lost = {name: value for name, value in metrics.items()
        if value and ("copy_failed" in name or "no_memory" in name or
                      "no_buffer_memory" in name or name in sys.argv[2:])}
print(json.dumps({n: v for n, v in metrics.items() if v}))
sys.exit(f"lost: {lost}" if lost else 0)
PY
}
# Nor anything that the guest was allowed to send.
host_clean() { lost tcp_retransmits tcp_fast_retransmits drops_tcp_out_of_window; }
# A guest with one processor that also verifies files answers late, and is asked again; it repeats
# what has come already as well (drops_tcp_repeated). What it was not allowed to send it never sends.
host_kept() { lost drops_tcp_out_of_window; }
# What the share did without the network, for later.
host_alone() { ctl inspect w >"$WORK/alone.json"; }
# The network took nothing from the share: no request of it has waited for memory.
host_apart() {
  ctl inspect w >"$WORK/flooded.json" && ctl inspect net >"$WORK/net.json" &&
    python3 - "$WORK/alone.json" "$WORK/flooded.json" "$WORK/net.json" <<'PY'
import json, sys
alone, flooded, net = (json.load(open(path)) for path in sys.argv[1:])
def total(device, name):
    return sum(queue[name] for queue in device["queues"])
print("share:", {n: (total(alone, n), total(flooded, n)) for n in flooded["queues"][0]
                 if isinstance(flooded["queues"][0][n], int)})
assert total(flooded, "completions") > total(alone, "completions") > 0
assert total(flooded, "slot_waits") == 0, "a request of the share waited for slots"
assert flooded["arena"]["policy"] == "private" and net["arena"]["policy"] == "private"
assert not flooded["needs_reset"] and not net["needs_reset"]
assert net["metrics"]["tx_frames"] > 1000 and net["metrics"]["rx_frames"] > 1000
PY
}
host_ends() {
  kill "$(tr -d '\0' <"$WORK/iperf.pid")"
  kill "$(cat "$WORK/server.pid")"
}
guest() {
  local modules
  modules=$(dirname "$(dirname "$(dirname "$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)")")")
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko" 2>/dev/null
  done
  check "the other end comes up" host wire
  ip link set lo up
  ip link set eth0 up
  ip addr add 10.0.2.15/24 dev eth0
  ip route add default via 10.0.2.2
  check "an address by SLAAC" sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show eth0 | grep global | grep -qv tentative && exit; sleep 1; done; exit 1"
  SUM=$(cat $M/a/big.sum)
  down() { curl -sSfg -m 115 "http://$1/big" | sha256sum | grep -q "^$SUM"; }
  up() { same "$(curl -sSfg -m 115 -T $M/a/big "http://$1/big")" "$SUM"; }
  sized() { local start=$EPOCHREALTIME; "$@" && awk "BEGIN { printf \"%.1f s\\n\", $EPOCHREALTIME - $start }" >/tmp/time; }
  timed() { check "$@" && echo "    $(cat /tmp/time)"; }
  timed "download over IPv4 with its checksum" sized down 198.18.0.1
  timed "upload over IPv4 with its checksum" sized up 198.18.0.1
  timed "download over IPv6 with its checksum" sized down '[2001:db8::1]'
  timed "upload over IPv6 with its checksum" sized up '[2001:db8::1]'
  check "nothing was lost" host clean
  timed "a thousand connections at once" sized /usr/bin/python3 $JOB/net_load.py meet 198.18.0.1 80 1000
  timed "a thousand connections at once over IPv6" sized /usr/bin/python3 $JOB/net_load.py meet 2001:db8::1 80 1000

  fio_verify() {
    fio --name=job --directory=$M/w --size=32m --verify=crc32c --verify_fatal=1 \
      --verify_state_save=0 --randrepeat=1 --fallocate=none --end_fsync=1 --output-format=terse \
      --do_verify=1 --rw=randwrite --bs=16k --direct=1 --ioengine=libaio --iodepth=16 "$@" &&
      rm -f $M/w/job*
  }
  check "fio alone" fio_verify
  check "and its counters" host alone
  flood() {
    iperf3 -c 198.18.0.1 -P 8 -t 20 -i 0 --bidir -J >/tmp/flood.json &
    local flood=$! file
    while kill -0 $flood 2>/dev/null; do fio_verify || return; done >/tmp/fio.log &
    file=$!
    down 198.18.0.1 && up '[2001:db8::1]' && wait $flood && wait $file
  }
  check "fio verifies while TCP floods the network, which loses nothing either" flood
  check "nothing was lost on the way" host kept
  check "the share has not waited for the network" host apart
  check "the helpers end" host ends
}
