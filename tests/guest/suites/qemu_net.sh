# QEMU without KVM, a Debian kernel, virtio-net-pci over vhost-user: proxy-net as a driver sees it that
# is not user-mode Linux. Without KVM QEMU 7.2 ends by SIGSEGV when it connects a vhost-user-net's MSI-X
# vectors (msix_set_vector_notifiers), so the device has none.
LIMIT=180
NEEDS="qemu-system-x86_64 cpio dpkg-deb depmod unshare nsenter ip"
SERVICE_WRAP=(unshare -n)

inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
ctl() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
host_wire() {
  inside ip link set lo up && inside ip addr add 198.18.0.1/32 dev lo &&
    inside ip -6 addr add 2001:db8::1/128 dev lo nodad &&
    inside sh -c 'echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range' &&
    { inside busybox httpd -p '[::]:80' -h "$WORK/a" || true; }
}
host_counts() {
  ctl --json inspect net | python3 -c 'import json, sys
metrics = json.load(sys.stdin)["metrics"]
print(metrics)
assert metrics["dhcp4_replies"] >= 2 and metrics["echo_opened"] == 2 and metrics["tcp_opened"] >= 3
assert not any(value for name, value in metrics.items() if name.startswith("tx_drops_"))'
}
host_remove() { ctl remove net; }

suite_run() {
  [ -x /bin/busybox ] || { skip "busybox is not installed (package busybox-static)"; return; }
  PATH=$PATH:/usr/sbin:/sbin
  debian_kernel || { skip "no Debian kernel could be had"; return; }
  DRIVERS="virtio_net af_packet ipv6" debian_initramfs "$WORK/initramfs.cpio" <<'INIT'
host() { echo "@@HOST $1"; read -r answer; [ "$answer" = ok ]; }
host wire; result $? "the other end comes up"
ip link set lo up; ip link set eth0 up
cat >/bin/bound <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router"
echo "nameserver $dns" >/etc/resolv.conf
SCRIPT
chmod 755 /bin/bound; mkdir -p /etc
udhcpc -i eth0 -n -q -t 10 -s /bin/bound >/dev/null 2>&1; ip -4 addr show eth0 | grep -q "10.0.2.15/24"
result $? "an address by DHCP"
for i in 1 2 3 4 5 6 7 8 9 10; do
  ip -6 addr show eth0 | grep global | grep -qv tentative && break; sleep 1
done
ip -6 addr show eth0 | grep -q fd76:6972; result $? "an address by SLAAC"
ip -6 route show | grep -q "^default.*fe80"; result $? "a router by its advertisement"
ping -c 2 -W 10 198.18.0.1 >/dev/null; result $? "ping"
ping -6 -c 2 -W 10 2001:db8::1 >/dev/null; result $? "ping over IPv6"
nslookup server.test 10.0.2.2 2>/dev/null | grep -q 198.18.0.1; result $? "a name"
wget -q -O /sums http://198.18.0.1/sums; result $? "a small file by HTTP"
wget -q -O /data http://198.18.0.1/data && (cd / && sha256sum -c sums) >/dev/null
result $? "a file by HTTP has its checksum"
rm -f /data
wget -q -O /data 'http://[2001:db8::1]/data' && (cd / && sha256sum -c sums) >/dev/null
result $? "a file by HTTP over IPv6 has its checksum"
host counts; result $? "the device counts"
host remove; result $? "the device is removed"
for i in 1 2 3 4 5 6 7 8 9 10; do
  ip -6 route show | grep -q "^default.*fe80" || break; sleep 1
done
! ip -6 route show | grep -q "^default.*fe80"; result $? "and its router has said so before"
echo "@@DONE 0"
poweroff -f
INIT
  suite_shares() {
    printf '\n[[device]]\nname = "net"\nplugin = "proxy-net"\nsocket = "%s"\n[device.options]\n%s' \
      "$WORK/net.sock" "mac = \"52:54:00:12:34:56\"
ipv6 = \"on\"
dns-records = \"server.test=198.18.0.1\"
" >>"$WORK/virtbay.toml"
  }
  service_file
  mkdir -p "$WORK/a"
  head -c 20000000 /dev/urandom >"$WORK/a/data"
  (cd "$WORK/a" && sha256sum data >sums)
  service_start "$WORK" "$WORK/virtbay.toml" || { fail "virtbay starts"; return; }
  qemu_start qemu-system-x86_64 -machine q35,accel=tcg,memory-backend=mem -cpu max -m 256M -smp 2 \
    -object memory-backend-memfd,id=mem,size=256M,share=on \
    -chardev socket,id=cn,path="$WORK/net.sock" -netdev vhost-user,id=n,chardev=cn \
    -device virtio-net-pci,netdev=n,mac=52:54:00:12:34:56,romfile=,vectors=0 \
    -kernel "$KERNEL" -initrd "$WORK/initramfs.cpio" -append "console=ttyS0 quiet panic=-1"
  guest_run "$LIMIT"
  for pid in $(pgrep -f "httpd -p \[::\]:80 -h $WORK/a"); do kill "$pid"; done
  service_check
}
