# proxy-net with the tools that people have: dhclient, dig, nc, curl. Two devices in the process, one
# with small packets and one with large ones; the server and its resolver are in the service's
# network namespace.
LIMIT=240
NEEDS="unshare nsenter ip curl python3 dnsmasq dig dhclient nc.openbsd tcpdump"
SERVICE_WRAP=(unshare -n)
suite_shares() {
  share a "$WORK/a"
  local name subnet
  for name in wide narrow; do
    subnet=2
    [ $name = wide ] || subnet=3
    printf '\n[[device]]\nname = "%s"\nplugin = "proxy-net"\nsocket = "%s"\n[device.options]\n%s' \
      $name "$WORK/$name.sock" "mac = \"52:54:00:12:34:5$subnet\"
subnet = \"10.0.$subnet.0/24\"
prefix6 = \"fd76:6972:7462:$subnet::/64\"
ipv6 = \"on\"
mtu = $([ $name = wide ] && echo 9000 || echo 1280)
dns = \"198.18.0.1\"
search = \"test\"
pcap = \"$WORK/$name.pcapng\"
pcap-snaplen = 128
" >>"$WORK/virtbay.toml"
    GUEST_DEVICES+=("$WORK/$name.sock:1")
  done
}
suite_prepare() {
  head -c 30000000 /dev/urandom >"$WORK/a/big"
  sha256sum <"$WORK/a/big" | cut -d ' ' -f 1 >"$WORK/a/big.sum"
}
inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
host_wire() {
  local last
  inside ip link set lo up || return
  inside sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range' || return
  for last in 1 2; do
    inside ip addr add 198.18.0.$last/32 dev lo &&
      inside ip -6 addr add 2001:db8::$last/128 dev lo nodad || return
  done
  # NS and SOA as bytes: dnsmasq has no words for them.
  (exec setsid nsenter -t "$VIRTBAY_PID" -n "$(PATH=$PATH:/usr/sbin command -v dnsmasq)" \
    --conf-file=/dev/null --keep-in-foreground --pid-file --no-resolv --no-hosts --user=root \
    --listen-address=198.18.0.1 --bind-interfaces --local=/test/ \
    --host-record=server.test,198.18.0.1,2001:db8::1 --cname=alias.test,server.test \
    --ptr-record=1.0.18.198.in-addr.arpa,server.test --mx-host=server.test,mail.test,10 \
    --txt-record=server.test,words --srv-host=_www._tcp.server.test,server.test,80,1,2 \
    --dns-rr=zone.test,2,026e73047465737400 \
    --dns-rr=zone.test,6,026e73047465737400026d650474657374000000000700000001000000020000000300000004) \
    </dev/null >"$WORK/dnsmasq.log" 2>&1 &
  echo $! >"$WORK/dnsmasq.pid"
  (exec setsid timeout "$LIMIT" nsenter -t "$VIRTBAY_PID" -n \
    python3 "$HERE/net_load.py" serve "$WORK/a" 80) </dev/null >"$WORK/server.log" 2>&1 &
  echo $! >"$WORK/server.pid"
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    inside curl -s -o /dev/null http://198.18.0.1/nothing && kill -0 "$(cat "$WORK/dnsmasq.pid")" &&
      return
    sleep 1
  done
  cat "$WORK/dnsmasq.log"
  return 1
}
host_down() { ctl device wide link down; }
host_up() { ctl device wide link up; }
# What others read of the captures: frames both ways, the large ones whole.
host_captures() {
  local name
  for name in wide narrow; do
    PATH=$PATH:/usr/sbin tcpdump -nr "$WORK/$name.pcapng" tcp >"$WORK/$name.txt" &&
      grep -q "198.18.0.[12].80 > 10.0.[23].15" "$WORK/$name.txt" &&
      grep -q "10.0.[23].15.*> 198.18.0.[12].80" "$WORK/$name.txt" || return
  done
}
host_counts() {
  ctl --json inspect wide | python3 -c 'import json, sys
metrics = json.load(sys.stdin)["metrics"]
print({n: v for n, v in metrics.items() if v})
assert metrics["dhcp6_replies"] >= 2 and metrics["dns_queries"] >= 20'
}
host_ends() { kill "$(cat "$WORK/server.pid")" "$(cat "$WORK/dnsmasq.pid")"; }
guest() {
  local modules wide narrow type owner want each device address
  modules=$(dirname "$(dirname "$(dirname "$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)")")")
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover drivers/net/virtio_net net/packet/af_packet; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko" 2>/dev/null
  done
  PATH=$PATH:/usr/sbin:/sbin
  named() { basename "$(dirname "$(grep -l "$1" /sys/class/net/*/address)")"; }
  wide=$(named 52:54:00:12:34:52)
  narrow=$(named 52:54:00:12:34:53)
  check "the other end comes up" host wire
  ip link set lo up
  check "the MTU is the device's" sh -c "[ \$(cat /sys/class/net/$wide/mtu) = 9000 ] && [ \$(cat /sys/class/net/$narrow/mtu) = 1280 ]"
  cat >/tmp/bound <<'SCRIPT'
#!/bin/sh
case $reason in
  BOUND) ip addr add "$new_ip_address/24" dev "$interface"; echo "$new_interface_mtu" >"/tmp/mtu.$interface" ;;
  BOUND6) ip -6 addr add "$new_ip6_address/128" dev "$interface" nodad; echo "$new_ip6_address" >/tmp/address6
    echo "$new_dhcp6_name_servers $new_dhcp6_domain_search" >/tmp/names6 ;;
esac
SCRIPT
  chmod +x /tmp/bound
  leased() { timeout 40 dhclient "$1" -1 -d -cf /tmp/dhclient.conf -lf "/tmp/leases$1$2" -pf "/tmp/pid$1$2" -sf /tmp/bound "$2" >"/tmp/dhclient$1$2" 2>&1 & }
  bound() { for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -qs "$2" "$1" && return; sleep 1; done; cat /tmp/dhclient*; return 1; }
  echo "request subnet-mask, routers, interface-mtu, dhcp6.name-servers, dhcp6.domain-search;" >/tmp/dhclient.conf
  for device in "$wide" "$narrow"; do
    ip link set "$device" up
    leased -4 "$device"
  done
  check "a lease of dhclient's and the MTU in it" bound "/tmp/mtu.$wide" 9000
  check "the same with small packets" bound "/tmp/mtu.$narrow" 1280
  settled() { for i in 1 2 3 4 5 6 7 8 9 10; do ip -6 addr show "$1" | grep "scope $2" | grep -qv tentative && return; sleep 1; done; return 1; }
  settled "$wide" link
  leased -6 "$wide"
  check "an address by DHCPv6" bound /tmp/address6 fd76:6972:7462:2::
  check "and the resolver and search list" bound /tmp/names6 "fd76:6972:7462:2::2.*test"
  ip route add 198.18.0.1 via 10.0.2.2
  ip route add 198.18.0.2 via 10.0.3.2
  settled "$narrow" global
  ip -6 route add 2001:db8::2 via "$(ip -6 route show default dev "$narrow" | awk '{ print $3; exit }')" dev "$narrow"
  ip -6 route replace 2001:db8::1 via "$(ip -6 route show default dev "$wide" | awk '{ print $3; exit }')" dev "$wide"
  check "which is used" busybox ping -6 -c 2 -W 10 -I "$(cat /tmp/address6)" 2001:db8::1

  # Every type, over both transports.
  while read -r type owner want; do
    for each in +notcp +tcp; do
      asked() { dig @10.0.2.2 "$each" +short +time=10 +tries=2 -t "$type" "$owner" | tee /tmp/dig | grep -qiF -- "$want" || { cat /tmp/dig; return 1; }; }
      check "dig $each $type" asked
    done
  done <<'RECORDS'
A server.test 198.18.0.1
AAAA server.test 2001:db8::1
CNAME alias.test server.test.
A alias.test 198.18.0.1
PTR 1.0.18.198.in-addr.arpa server.test.
MX server.test 10 mail.test.
TXT server.test words
SRV _www._tcp.server.test 1 2 80 server.test.
NS zone.test ns.test.
SOA zone.test ns.test. me.test. 7
ANY server.test 198.18.0.1
RECORDS
  check "dig over IPv6" sh -c "dig @fd76:6972:7462:2::2 +short server.test | grep -q 198.18.0.1"
  check "a name that is not there" sh -c "dig @10.0.2.2 nobody.test | grep -q NXDOMAIN"

  SUM=$(cat $M/a/big.sum)
  down() { curl -sSfg -m 60 "http://$1/big" | sha256sum | grep -q "^$SUM"; }
  up() { same "$(curl -sSfg -m 60 -T $M/a/big "http://$1/big")" "$SUM"; }
  for address in 198.18.0.1 '[2001:db8::1]'; do
    check "download with packets of 9000, $address" down "$address"
    check "upload with packets of 9000, $address" up "$address"
  done
  for address in 198.18.0.2 '[2001:db8::2]'; do
    check "download with packets of 1280, $address" down "$address"
    check "upload with packets of 1280, $address" up "$address"
  done
  for address in 198.18.0.1 '[2001:db8::2]'; do
    half_closed() { same "$(nc.openbsd -N -w 60 "${address//[][]/}" 82 <$M/a/big)" "$SUM"; }
    check "half-closed, the answer comes all the same (nc -N), $address" half_closed
    # 56 is what curl says of a reset, 52 of a connection that was closed.
    was_reset() { curl -sg -m 60 "http://$address:83/"; [ $? = 56 ]; }
    check "a server's reset arrives, $address" was_reset
  done
  carrier() { for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(cat "/sys/class/net/$wide/carrier")" = "$1" ] && return; sleep 1; done; return 1; }
  for each in 1 2; do
    check "the link goes down" host down
    check "the guest sees it" carrier 0
    check "the link comes up" host up
    check "the guest sees that too" carrier 1
    check "and goes on" down 198.18.0.1
  done
  kill $(jobs -p) 2>/dev/null
  check "the captures can be read" host captures
  check "the device counts" host counts
  check "the helpers end" host ends
}
