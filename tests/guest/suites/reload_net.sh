# The plugins of a guest's two network devices are reloaded again and again while it uses them:
# transfers keep their checksums, connections and UDP flows go on, questions to the resolver are
# answered, forwards lead in, and nothing of the process grows.
LIMIT=400
NEEDS="unshare nsenter ip curl python3"
RELOADS=${VIRTBAY_RELOADS:-50}
SERVICE_WRAP=(unshare -n)
suite_shares() {
  share a "$WORK/a"
  printf '\n[[device]]\nname = "net"\nplugin = "proxy-net"\nsocket = "%s"\n[device.options]\n%s' \
    "$WORK/net.sock" "mac = \"52:54:00:12:34:56\"
ipv6 = \"off\"
dns-records = \"server.test=198.18.0.1\"
forward = \"tcp:127.0.0.1:2222-2223:22-23\"
" >>"$WORK/virtbay.toml"
  printf '\n[[device]]\nname = "tap"\nplugin = "virtio-net"\nsocket = "%s"\n[device.options]\n%s' \
    "$WORK/tap.sock" "tap = \"vbt0\"
mac = \"52:54:00:12:34:57\"
" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/net.sock:1" "$WORK/tap.sock:1")
}
suite_prepare() {
  head -c 40000000 /dev/urandom >"$WORK/a/big"
  sha256sum <"$WORK/a/big" | cut -d ' ' -f 1 >"$WORK/a/big.sum"
  cp "$HERE/net_load.py" "$WORK/job/"
}
inside() { nsenter -t "$VIRTBAY_PID" -n "$@"; }
host_wire() {
  inside ip link set lo up && inside ip addr add 198.18.0.1/32 dev lo &&
    inside ip addr add 10.88.0.1/24 dev vbt0 && inside ip link set vbt0 up || return
  (exec setsid timeout "$LIMIT" nsenter -t "$VIRTBAY_PID" -n \
    python3 "$HERE/net_load.py" serve "$WORK/a" 80) </dev/null >"$WORK/server.log" 2>&1 &
  echo $! >"$WORK/server.pid"
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    inside curl -s -o /dev/null http://198.18.0.1/nothing && return
    sleep 1
  done
}
# Images, threads, descriptors that are neither a flow's nor one of the share's files.
process_size() {
  local images threads fds
  images=$(grep -c "virtbay-plugin-" "/proc/$VIRTBAY_PID/maps")
  # With a sanitizer they stay on purpose.
  ! grep -qE "lib(a|t|ub)san" "/proc/$VIRTBAY_PID/maps" || images=0
  threads=$(ls "/proc/$VIRTBAY_PID/task" | wc -l)
  ls -l "/proc/$VIRTBAY_PID/fd" | grep -v "$WORK/a/" >"$WORK/fds"
  fds=$(grep -c -e '-> anon_inode:' -e '-> /' "$WORK/fds")
  echo "$images $threads $fds"
}
reload() {
  cp "$BUILD/plugins/$2.so" "$WORK/$2-$3.so"
  "$BUILD/bin/virtbay" reload "$1" --control-socket "$WORK/control.sock" --from "$WORK/$2-$3.so" >>"$WORK/reload-$1.log"
}
both() { reload net proxy-net "$1" && reload tap virtio-net "$1"; }
host_once() { both 0 && both 1; }
host_measure() { process_size >"$WORK/before"; }
host_reloads() {
  local i device
  for i in $(seq "$RELOADS"); do
    both $((i % 2)) || return 1
    [ $((i % 10)) != 0 ] || host_forward || return 1
  done
  for device in net tap; do
    sed -n 's/.*pause \([0-9.]*\) ms.*/\1/p' "$WORK/reload-$device.log" | sort -n |
      awk '{ a[NR] = $1 } END { print NR " reloads of '$device', pause p50 " a[int(NR / 2)] " ms, p99 " a[int(NR * 0.99)] " ms" }'
  done
}
# In by the forwards: one connection all the time, and others now and then.
host_forward() { inside curl -sSf -m 100 http://127.0.0.1:2222/big.sum | cmp - "$WORK/a/big.sum"; }
host_talk() {
  (
    nsenter -t "$VIRTBAY_PID" -n timeout "$LIMIT" \
      python3 "$HERE/net_load.py" chat 127.0.0.1 2223 tcp "$WORK/stop" >"$WORK/talk.log" 2>&1
    echo $? >"$WORK/talk.status"
  ) </dev/null >/dev/null 2>&1 &
}
host_talked() {
  touch "$WORK/stop"
  for _ in $(seq 100); do
    [ ! -e "$WORK/talk.status" ] || break
    sleep 1
  done
  cat "$WORK/talk.log"
  [ "$(cat "$WORK/talk.status")" = 0 ]
}
host_grown() {
  local now
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    now=$(process_size)
    [ "$now" != "$(cat "$WORK/before")" ] || break
    sleep 1
  done
  echo "images, threads, descriptors before: $(cat "$WORK/before"), after: $now"
  cat "$WORK/fds"
  [ "$now" = "$(cat "$WORK/before")" ]
}
host_ends() { kill "$(cat "$WORK/server.pid")"; }
guest() {
  local modules proxied tapped
  modules=$(dirname "$(dirname "$(dirname "$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)")")")
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover drivers/net/virtio_net; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko" 2>/dev/null
  done
  named() { basename "$(dirname "$(grep -l "$1" /sys/class/net/*/address)")"; }
  proxied=$(named 52:54:00:12:34:56)
  tapped=$(named 52:54:00:12:34:57)
  check "the other end comes up" host wire
  ip link set lo up
  ip link set "$proxied" up
  ip addr add 10.0.2.15/24 dev "$proxied"
  ip route add default via 10.0.2.2
  ip addr add 10.88.0.2/24 dev "$tapped"
  ip link set "$tapped" up
  check "a transfer over each" sh -c "curl -sSf -m 60 http://198.18.0.1/big | cmp - $M/a/big && curl -sSf -m 60 http://10.88.0.1/big | cmp - $M/a/big"
  check "two reloads" host once
  check "the size of the process" host measure
  SUM=$(cat $M/a/big.sum)
  # Until there is a file: one after the other, the other way and back.
  transfers() {
    local n=0
    while [ ! -e /tmp/stop ]; do
      curl -sSf -m 100 "http://$1/big" | sha256sum | grep -q "^$SUM" || { echo "down $1"; return 1; }
      [ "$(curl -sSf -m 100 -T $M/a/big "http://$1/big")" = "$SUM" ] || { echo "up $1"; return 1; }
      n=$((n + 1))
    done
    echo "$n transfers both ways"
  }
  names() {
    while [ ! -e /tmp/stop ]; do
      busybox nslookup server.test 10.0.2.2 | grep -q 198.18.0.1 || { echo "no answer"; return 1; }
      busybox usleep 100000
    done
  }
  /usr/bin/python3 $JOB/net_load.py serve $M/a 22 &
  server=$!
  check "in by a forward" sh -c "for i in 1 2 3 4 5 6 7 8 9 10; do curl -s http://10.0.2.15:22/big.sum && exit; sleep 1; done; exit 1"
  check "a connection by a forward" host talk
  jobs_of=()
  job() {
    local name=$1
    shift
    { "$@" >"/tmp/$name" 2>&1; echo $? >"/tmp/$name.status"; } &
    jobs_of+=("$name")
  }
  job proxied transfers 198.18.0.1
  job tapped transfers 10.88.0.1
  job names names
  for kind in tcp udp; do
    job "proxied_$kind" /usr/bin/python3 $JOB/net_load.py chat 198.18.0.1 81 $kind /tmp/stop
    job "tapped_$kind" /usr/bin/python3 $JOB/net_load.py chat 10.88.0.1 81 $kind /tmp/stop
  done
  LIMIT=300
  begun() { while [ "$(cat /tmp/*_tcp /tmp/*_udp | grep -c begun)" != 4 ]; do busybox usleep 100000; done; }
  check "questions and answers" begun
  check "reloads of both while the guest uses them" host reloads
  touch /tmp/stop
  for each in "${jobs_of[@]}"; do
    ended() {
      while [ ! -e "/tmp/$each.status" ]; do busybox usleep 100000; done
      cat "/tmp/$each"
      return "$(cat "/tmp/$each.status")"
    }
    check "$each noticed nothing" ended && echo "    $(tail -n 1 "/tmp/$each")"
  done
  check "a connection by a forward noticed nothing" host talked
  kill $server
  check "nothing of the process has grown" host grown
  check "the helper ends" host ends
}
