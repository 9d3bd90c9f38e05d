# A virtio-net device over a TAP interface beside a share: the service runs in a network namespace of
# its own, which is the other end of the guest's cable.
LIMIT=150
NEEDS="unshare nsenter ip iperf3"
SERVICE_WRAP=(unshare -n)
suite_shares() {
  share a "$WORK/a"
  printf '\n[[device]]\nname = "net"\nplugin = "virtio-net"\nsocket = "%s"\n[device.options]\n%s' \
    "$WORK/net.sock" "tap = \"vbt0\"
mac = \"52:54:00:12:34:56\"
pcap = \"$WORK/net.pcapng\"
pcap-snaplen = 96
" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/net.sock:1")
}
suite_prepare() { head -c 30000000 /dev/urandom >"$WORK/a/data"; }
inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
host_wire() {
  inside ip addr add 10.88.0.1/24 dev vbt0 &&
    inside ip addr add fd88::1/64 dev vbt0 nodad &&
    inside ip link set lo up && inside ip link set vbt0 up &&
    inside iperf3 -s -D -I "$WORK/iperf.pid" --logfile "$WORK/iperf.log" &&
    { inside busybox httpd -p 10.88.0.1:80 -h "$WORK/a" || true; }
}
host_pings() { inside busybox ping -c 3 -W 10 10.88.0.2; }
host_down() { ctl device net link down; }
host_up() { ctl device net link up; }
host_counts() {
  ctl device net show && ctl --json inspect net | grep -q '"rx_merged_buffers":[1-9]' &&
    ctl --json inspect net | grep -q '"tx_frames":[1-9]'
}
host_ends() {
  kill "$(tr -d '\0' <"$WORK/iperf.pid")"
  for pid in $(pgrep -f "httpd -p 10.88.0.1:80 -h $WORK/a"); do kill "$pid"; done
}
guest() {
  local modules
  modules=$(dirname "$(dirname "$(dirname "$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)")")")
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko"
  done
  check "the interface is there" sh -c "ip link show eth0 | grep -q 52:54:00:12:34:56"
  check "the other end comes up" host wire
  ip link set lo up
  ip addr add 10.88.0.2/24 dev eth0
  ip addr add fd88::2/64 dev eth0 nodad
  ip link set eth0 up
  check "ping" busybox ping -c 3 -W 10 10.88.0.1
  check "ping over IPv6" busybox ping -6 -c 3 -W 10 fd88::1
  check "ping from the host" host pings
  check "large pings" busybox ping -c 3 -s 8000 -W 10 10.88.0.1
  check "a file by HTTP has its checksum" sh -c "busybox wget -q -O /tmp/got http://10.88.0.1/data && cmp /tmp/got $M/a/data"
  check "iperf3 to the host" iperf3 -c 10.88.0.1 -t 3 -i 0
  check "iperf3 from the host" iperf3 -c 10.88.0.1 -t 3 -i 0 -R
  check "iperf3 over IPv6" iperf3 -6 -c fd88::1 -t 2 -i 0
  check "UDP both ways" sh -c "iperf3 -u -b 50M -c 10.88.0.1 -t 2 -i 0 && iperf3 -u -b 50M -c 10.88.0.1 -t 2 -i 0 -R"
  check "without offloads" sh -c "ethtool -K eth0 tso off gso off tx off rx off 2>/dev/null; iperf3 -c 10.88.0.1 -t 2 -i 0 && iperf3 -c 10.88.0.1 -t 2 -i 0 -R"
  check "down" host down
  check "the guest sees it" sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do [ \"\$(cat /sys/class/net/eth0/carrier)\" = 0 ] && exit; sleep 1; done; exit 1"
  check "up" host up
  check "the guest sees that too" sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do [ \"\$(cat /sys/class/net/eth0/carrier)\" = 1 ] && exit; sleep 1; done; exit 1"
  check "ping again" busybox ping -c 3 -W 10 10.88.0.1
  check "the device counts" host counts
  check "the helpers end" host ends
}
