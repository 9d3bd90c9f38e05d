#!/bin/bash
# The demo: one virtbay process serves two directories and a network to a Linux guest, which works
# on all three at once; then what each device did. No root needed once the packages are there.
#   scripts/demo.sh [--in-process]   (the latter: without user-mode Linux even where it is there)
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd)
IN_PROCESS=
for word in "$@"; do
  case $word in
    --in-process) IN_PROCESS=1 ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "demo.sh: unknown option '$word'" >&2; exit 2 ;;
  esac
done
BUILD=$ROOT/build/release
. "$ROOT/scripts/lib/build.sh"
. "$ROOT/scripts/lib/guest.sh"

"$ROOT/scripts/setup.sh" || echo "demo: going on with what is installed"
echo "== build"
configure_build release || exit 1
# With every device, so that the README's other commands work afterwards.
cmake --build "$BUILD" --target virtbay_device_host virtiofs virtio-net proxy-net \
  virtbay_demo_guest virtbay_uml_preload -- -j"$(nproc)" --quiet || exit 1

WORK=$(mktemp -d "${TMPDIR:-/tmp}/virtbay-demo-XXXXXX")
WEB=()
cleanup() {
  all_kill
  [ ${#WEB[@]} = 0 ] || kill "${WEB[@]}" 2>/dev/null
  chmod -R u+rwX "$WORK" 2>/dev/null
  rm -rf "$WORK"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
mkdir -p "$WORK/source" "$WORK/scratch" "$WORK/job"

# A repository of 1,000 files and three commits, made without touching the user's git settings.
make_repository() {
  local commit file
  export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
  git init -q --bare "$WORK/source/project.git"
  {
    for commit in 1 2 3; do
      printf 'commit refs/heads/main\ncommitter demo <demo@example.org> %s +0000\n' $((1000000000 + commit))
      printf 'data 5\nstep%s\n' $commit
      for file in $(seq 1000); do
        [ $commit = 1 ] || [ $((file % 7)) = $commit ] || continue
        printf 'M 100644 inline src/d%s/file%s.txt\n' $((file % 40)) $file
        printf 'data <<END\n'
        seq $((file * commit)) $((file * commit + 300))
        printf 'END\n'
      done
      printf 'reset refs/tags/v%s\nfrom refs/heads/main\n\n' $commit
    done
  } | git --git-dir="$WORK/source/project.git" fast-import --quiet
}

device() {
  printf '\n[[device]]\nname = "%s"\nplugin = "virtiofs"\nsocket = "%s"\n' "$1" "$WORK/$1.sock"
  printf '[device.options]\ntag = "%s"\nshared-dir = "%s"\n' "$1" "$WORK/$1"
}

# A web server on the host's loopback, which hands out the share "source". PORT stays empty when no
# port can be had; over IPv6 only where the host has that.
web_start() {
  local address
  head -c 30000000 /dev/urandom >"$WORK/source/download"
  for _ in 1 2 3 4 5; do
    PORT=$((20000 + RANDOM % 20000))
    for address in 127.0.0.1 '[::1]'; do
      busybox httpd -f -p "$address:$PORT" -h "$WORK/source" >/dev/null 2>&1 &
      WEB+=($!)
    done
    sleep 0.2
    kill -0 "${WEB[-2]}" 2>/dev/null || continue
    FAMILIES=a
    ! kill -0 "${WEB[-1]}" 2>/dev/null || FAMILIES="a aaaa"
    return
  done
  PORT=
}

# Of the host's loopback the guest may reach that one port.
network() {
  printf '\n[[device]]\nname = "net"\nplugin = "proxy-net"\nsocket = "%s"\n' "$WORK/net.sock"
  printf '[device.options]\nipv6 = "on"\nhost-ports = "tcp:%s"\n' "$PORT"
}

reason=$(uml_missing)
[ -z "$IN_PROCESS" ] || reason="not wanted"
if [ -z "$reason" ] && ! command -v git >/dev/null; then reason="git is not installed"; fi
PORT=
[ -n "$reason" ] || web_start
{
  printf '[host]\nlog-level = "warn"\ncontrol-socket = "%s"\n' "$WORK/control.sock"
  device source
  device scratch
  [ -z "$PORT" ] || network
} >"$WORK/virtbay.toml"

echo "== one virtbay process, two shares: source and scratch${PORT:+; a network: net}"
service_start "$WORK" "$WORK/virtbay.toml" || exit 1

uml_job() {
  make_repository || return 1
  make_initramfs "$WORK/initramfs.cpio" || return 1
  cat >"$WORK/job/job.sh" <<'JOB'
printf '[safe]\n\tdirectory = *\n' >~/.gitconfig
say() { echo "@@SAY $*"; }
say "Linux $(uname -r), shares mounted: $(grep -c virtiofs /proc/mounts)"
git_job() {
  cd /run/mnt/source && git clone -q project.git checkout && cd checkout &&
    git checkout -q v1 && git checkout -q v3 && [ -z "$(git status --porcelain)" ] &&
    git fsck --no-progress >/dev/null && say "source: clone, two checkouts, status and fsck: $SECONDS s"
}
file_job() {
  if command -v fio >/dev/null; then
    fio --name=job --directory=/run/mnt/scratch --size=48m --rw=randrw --bs=64k --ioengine=psync \
      --verify=crc32c --verify_fatal=1 --verify_state_save=0 --numjobs=2 --fallocate=none \
      --eta=never --output=/tmp/fio.out && say "scratch: fio, 2 x 48 MiB, verified: $SECONDS s"
  else
    head -c 100000000 /dev/urandom >/run/mnt/scratch/a && cp /run/mnt/scratch/a /run/mnt/scratch/b &&
      cmp /run/mnt/scratch/a /run/mnt/scratch/b && say "scratch: 100 MB written, copied, compared: $SECONDS s"
  fi
}
# An address by DHCP, a name, and the same file twice: over the network and from the share.
net_job() {
  local modules module family address router url
  modules=$(find /usr/lib/uml/modules -name virtio_net.ko | head -n 1)
  modules=${modules%/drivers/net/virtio_net.ko}
  for module in lib/crc-ccitt net/ipv6/ipv6 net/core/failover drivers/net/net_failover \
    drivers/net/virtio_net net/packet/af_packet; do
    insmod "$modules/$module.ko" 2>/dev/null || busybox insmod "$modules/$module.ko" 2>/dev/null
  done
  ip link set eth0 up || return 1
  cat >/tmp/udhcpc <<'SCRIPT'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
ip route add default via "$router"
echo "$ip $router" >/tmp/lease
SCRIPT
  chmod +x /tmp/udhcpc
  busybox udhcpc -i eth0 -n -q -t 10 -s /tmp/udhcpc || return 1
  read -r address router </tmp/lease
  say "net: address $address by DHCP: $SECONDS s"
  for family in $FAMILIES; do
    address=$(busybox nslookup -type=$family host.virtbay.internal "$router" |
      awk '/^Address/ && $2 !~ /:53$/ { print $2 }' | tail -n 1)
    [ -n "$address" ] || return 1
    url=$address
    if [ $family = aaaa ]; then
      for _ in 1 2 3 4 5 6 7 8 9 10; do
        ip -6 addr show dev eth0 | grep global | grep -qv tentative && break
        sleep 0.5
      done
      url="[$address]"
    fi
    busybox wget -q -O - "http://$url:$PORT/download" | cmp - /run/mnt/source/download || return 1
    say "net: host.virtbay.internal is $address; 30 MB from there are what the share has: $SECONDS s"
  done
}
SECONDS=0
echo "@@BEGIN"
net=
if [ -n "$PORT" ]; then
  ( net_job ) >/tmp/net.log 2>&1 </dev/null >/dev/console &
  net=$!
fi
( git_job ) >/tmp/git.log 2>&1 </dev/null >/dev/console &
git=$!
file_job || { say "scratch: FAILED"; cat /tmp/fio.out; exit 1; }
wait $git || { say "source: FAILED"; cat /tmp/git.log; exit 1; }
[ -z "$net" ] || wait $net || { say "net: FAILED"; cat /tmp/net.log; exit 1; }
JOB
  sed -i "1i PORT=$PORT FAMILIES='${FAMILIES:-}'" "$WORK/job/job.sh"
  [ -z "$PORT" ] || GUEST_DEVICES=("$WORK/net.sock:1")
  guest_start "$WORK" "$WORK/initramfs.cpio" "$WORK/job" 320M \
    "source=$WORK/source.sock" "scratch=$WORK/scratch.sock" || return 1
  local end=$((SECONDS + 120)) status=
  while guest_line $((end - SECONDS)); do
    echo "$LINE" >>"$WORK/console.log"
    case $LINE in
      "@@SAY "*) echo "  ${LINE#@@SAY }" ;;
      "@@BEGIN") begin=$(date +%s%N) ;;
      "@@FAIL "*) echo "  ${LINE#@@FAIL }: failed" ;;
      "@@DONE "*) status=${LINE#@@DONE }; break ;;
    esac
  done
  [ "$status" = 0 ] && return
  echo "demo.sh: the guest's job failed; its last lines:" >&2
  tail -n 10 "$WORK/console.log" >&2
  return 1
}

begin=$(date +%s%N)
if [ -z "$reason" ]; then
  echo "== user-mode Linux boots and works on both at once"
  uml_job
else
  echo "== without user-mode Linux ($reason): the in-process guest works on both at once"
  "$BUILD/bin/virtbay_demo_guest" "$WORK/source.sock" "$WORK/scratch.sock"
fi
status=$?
elapsed=$((($(date +%s%N) - begin) / 1000000))

# Prometheus text is easily read by awk; one line per device comes out.
"$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" stats --prometheus >"$WORK/stats" || exit 1
echo "== what each device did"
awk -v ms=$elapsed '
  /^#/ { next }
  {
    name = $1; sub(/\{.*/, "", name)
    if (!/device="/) next  # of the process
    device = $1; sub(/.*device="/, "", device); sub(/".*/, "", device)
    sum[name, device] += $2; seen[device] = 1
  }
  function mb(bytes) { return sprintf("%.1f MB", bytes / 1e6) }
  END {
    printf "  %-9s %10s %12s %14s %14s %12s %8s %8s\n", "device", "requests", "requests/s",
      "moved, no copy", "copied", "throughput", "CPU", "arena"
    for (device in seen) {
      requests = sum["virtbay_queue_requests_total", device]
      direct = sum["virtbay_queue_direct_bytes_total", device]
      copied = sum["virtbay_queue_copied_in_bytes_total", device] + \
        sum["virtbay_queue_copied_out_bytes_total", device]
      printf "  %-9s %10d %12d %14s %14s %10s/s %6.2f s %4d KiB\n", device, requests,
        requests * 1000 / ms, mb(direct), mb(copied), mb((direct + copied) * 1000 / ms),
        sum["virtbay_device_cpu_seconds_total", device],
        sum["virtbay_arena_slots_high_water", device] * 2
    }
  }' "$WORK/stats"
echo "  (over $((elapsed / 1000)).$((elapsed % 1000 / 100)) s, arena: most that was in use at once)"
guest_kill
if ! service_stop; then
  echo "demo.sh: virtbay did not end cleanly" >&2
  tail -n 5 "$WORK/virtbay.log" >&2
  status=1
fi
[ $status = 0 ] && echo "== done"
exit $status
