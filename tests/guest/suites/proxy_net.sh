# A proxy-net device beside a share: the service runs in a network namespace of its own, as a user
# would who has no TAP interface; what the guest reaches are sockets there.
LIMIT=240
NEEDS="unshare nsenter ip iperf3"
SERVICE_WRAP=(unshare -n)
suite_shares() {
  share a "$WORK/a"
  printf '\n[[device]]\nname = "net"\nplugin = "proxy-net"\nsocket = "%s"\n[device.options]\n%s' \
    "$WORK/net.sock" "mac = \"52:54:00:12:34:56\"
ipv6 = \"on\"
dns-records = \"server.test=198.18.0.1,server.test=2001:db8::1,alias.test=server.test\"
search = \"test\"
host-ports = \"tcp:80\"
forward = \"tcp:127.0.0.1:2222:22,tcp:[::]:2222:22\"
pcap = \"$WORK/net.pcapng\"
pcap-snaplen = 96
" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/net.sock:1")
}
suite_prepare() { head -c 30000000 /dev/urandom >"$WORK/a/data"; }
inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
host_wire() {
  inside ip link set lo up && inside ip addr add 198.18.0.1/32 dev lo &&
    inside ip -6 addr add 2001:db8::1/128 dev lo nodad &&
    inside ip addr add 169.254.169.254/32 dev lo &&
    inside sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range' &&
    inside iperf3 -s -D -I "$WORK/iperf.pid" --logfile "$WORK/iperf.log" &&
    { inside busybox httpd -p '[::]:80' -h "$WORK/a" || true; }
}
# In by the forwards: the guest answers with what it is told.
host_forward() { [ "$(echo in | inside busybox nc -w 10 127.0.0.1 2222)" = out ]; }
host_forward6() { [ "$(echo in | inside busybox nc -w 10 ::1 2222)" = out ]; }
host_added() {
  local forward
  forward=$(ctl device net forward-add tcp:127.0.0.1:0:22) &&
    ctl device net forward-list | grep -qx "$forward" &&
    ctl device net forward-remove "$forward" &&
    ! ctl device net forward-list | grep -qx "$forward"
}
host_denied() { ctl device net rule-add "1 deny 198.18.0.1:5201"; }
host_allowed() { ctl device net rule-remove "deny 198.18.0.1:5201"; }
host_flows() {
  ctl device net show && ctl device net flows | head -n 20 &&
    ctl --json inspect net | grep -q '"tcp_opened":[1-9]' &&
    ctl --json inspect net | grep -q '"drops_tcp_out_of_window":0'
}
host_ends() {
  kill "$(tr -d '\0' <"$WORK/iperf.pid")"
  for pid in $(pgrep -f "httpd -p \[::\]:80 -h $WORK/a"); do kill "$pid"; done
}
guest() {
  local modules
  modules=$(dirname "$(dirname "$(dirname "$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)")")")
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover drivers/net/virtio_net net/packet/af_packet; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko" 2>/dev/null
  done
  check "the other end comes up" host wire
  ip link set lo up
  ip link set eth0 up
  cat >/tmp/udhcpc <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router"
echo "search $search" >/tmp/resolv.conf
for server in $dns; do echo "nameserver $server" >>/tmp/resolv.conf; done
SCRIPT
  chmod +x /tmp/udhcpc
  check "an address by DHCP" sh -c "busybox udhcpc -i eth0 -n -q -t 10 -O search -s /tmp/udhcpc && ip -4 addr show eth0 | grep -q 10.0.2.15"
  check "the resolver by DHCP" grep -q "nameserver 10.0.2.2" /tmp/resolv.conf
  check "an address by SLAAC" sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show eth0 | grep global | grep -qv tentative && exit; sleep 1; done; exit 1"
  check "ping" busybox ping -c 3 -W 10 198.18.0.1
  check "ping over IPv6" busybox ping -6 -c 3 -W 10 2001:db8::1
  check "ping the gateway" busybox ping -c 3 -W 10 10.0.2.2
  check "a name" sh -c "busybox nslookup server.test 10.0.2.2 | grep -q 198.18.0.1"
  check "a name's IPv6 address" sh -c "busybox nslookup -type=aaaa alias.test 10.0.2.2 | grep -q 2001:db8::1"
  check "a file by HTTP has its checksum" sh -c "busybox wget -q -O /tmp/got http://198.18.0.1/data && cmp /tmp/got $M/a/data"
  check "a file by HTTP over IPv6" sh -c "busybox wget -q -O /tmp/got 'http://[2001:db8::1]/data' && cmp /tmp/got $M/a/data"
  check "the host by its virtual address" sh -c "busybox wget -q -O /tmp/got http://10.0.2.254/data && cmp /tmp/got $M/a/data"
  check "iperf3 to the host" iperf3 -c 198.18.0.1 -t 3 -i 0
  check "iperf3 from the host" iperf3 -c 198.18.0.1 -t 3 -i 0 -R
  check "iperf3 over IPv6" sh -c "iperf3 -6 -c 2001:db8::1 -t 2 -i 0 && iperf3 -6 -c 2001:db8::1 -t 2 -i 0 -R"
  check "many streams" iperf3 -c 198.18.0.1 -P 16 -t 3 -i 0
  check "UDP both ways" sh -c "iperf3 -u -b 50M -c 198.18.0.1 -t 2 -i 0 && iperf3 -u -b 50M -c 198.18.0.1 -t 2 -i 0 -R"
  check "what nobody listens on is refused at once" sh -c "! busybox nc -w 60 198.18.0.1 9 </dev/null"
  # There is one, and a server: 1 is what wget says of a connection that is refused.
  check "the metadata service is not there" sh -c 'busybox wget -q -O - http://169.254.169.254/data; [ $? = 1 ]'
  (for _ in 1 2; do echo out | busybox nc -l -p 22 >/tmp/in; done) &
  sleep 1
  check "in by a forward" host forward
  sleep 1
  check "in by a forward of IPv6" host forward6
  check "a forward comes and goes" host added
  check "a rule comes" host denied
  check "and forbids" sh -c "! iperf3 -c 198.18.0.1 -t 1 -i 0"
  check "a rule goes" host allowed
  check "and allows" iperf3 -c 198.18.0.1 -t 1 -i 0
  check "without offloads" sh -c "ethtool -K eth0 tso off gso off tx off rx off 2>/dev/null; iperf3 -c 198.18.0.1 -t 2 -i 0 && iperf3 -c 198.18.0.1 -t 2 -i 0 -R"
  check "the device tells of its flows" host flows
  check "the helpers end" host ends
}
