#!/bin/bash
# What WSL's service tells its device host: .wslconfig and option strings on the command line, and
# the guest's report, from virtbay-guest through a guest channel into a running virtbay.
#   wsl_cli_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: wsl_cli_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
GUEST=$BUILD/bin/virtbay-guest
KEPT="$KEPT|.*\.wslconfig|sockets|log"
CTL=(ctl --control-socket=control.sock)
mkdir sockets

# guest STATUS TEXT ARGUMENT...: virtbay-guest ends with STATUS and says TEXT (empty: anything).
guest() {
  local status=$1 text=$2 got
  shift 2
  count=$((count + 1))
  timeout 60 "$GUEST" "$@" >out 2>err </dev/null
  got=$?
  [ $got = "$status" ] || complain "virtbay-guest $*: exit status $got, not $status"
  [ -z "$text" ] || cat out err | grep -qF -- "$text" || complain "virtbay-guest $*: does not say '$text'"
  [ "$(wc -l <err)" -le 1 ] || complain "virtbay-guest $*: more than one line on stderr"
}

logged() {
  count=$((count + 1))
  grep -qF -- "$1" log || { complain "no '$1' in the log"; cat log; }
}

# A guest with a pool.
HV_PCI=pool/sys/bus/vmbus/drivers/hv_pci
mkdir -p $HV_PCI empty
echo 0x10000000 >$HV_PCI/swiotlb_base
echo 67108864 >$HV_PCI/swiotlb_size
cp -r pool other
echo 0x20000000 >other/${HV_PCI#pool/}/swiotlb_base
KEPT="$KEPT|pool|other|empty"

# The guest's program: static, small, at home in an empty file system.
count=$((count + 1))
if [ "$(od -An -tx1 -N4 "$GUEST" | tr -d ' ')" != 7f454c46 ] || readelf -lW "$GUEST" | grep -qE 'INTERP|DYNAMIC'; then
  complain "virtbay-guest is not a static program"
fi
[ "$(stat -c %s "$GUEST")" -lt 2000000 ] || complain "virtbay-guest has $(stat -c %s "$GUEST") bytes"
if [ "$(id -u)" = 0 ]; then
  cp "$GUEST" empty/guest
  count=$((count + 1))
  [ "$(chroot empty /guest)" = '{"command":"guest","swiotlb":"none","reason":"the kernel has set no pool aside for hv_pci devices: there is no /sys/bus/vmbus/drivers/hv_pci/swiotlb_base","restricted_pools":[]}' ] ||
    complain "virtbay-guest in an empty root"
  rm empty/guest
fi
guest 0 '"swiotlb":"none"' --root empty
guest 0 '"swiotlb":"0x10000000,67108864"' --root pool --json
guest 0 'swiotlb=0x10000000,67108864' --root=pool --option
guest 1 'no pool aside' --root empty --option
guest 1 'no restricted pool' --root pool --option --device /virtio_mmio@a000000
guest 0 '--send' --help
guest 0 'virtbay-guest ' --version
guest 2 '--bogus' --bogus
guest 2 '--send' --send
guest 2 'KIND' --send udp:1
guest 2 '--timeout' --timeout=0
guest 2 '--device' --device /x
guest 1 'connect' --root pool --send unix:missing.sock

# Usage of `run` without a file.
refuses 2 "file" run
refuses 2 "--socket-dir" run --share a=share
refuses 2 "file" run x.toml --share a=share
refuses 1 "--share 'a'" run --socket-dir=sockets --share a
refuses 1 "mode: '9'" run --socket-dir=sockets --share 'a=share;mode=9'
refuses 1 "--device-string 'a'" run --socket-dir=sockets --device-string a
refuses 1 "/missing/dir" run --socket-dir=sockets --share a=/missing/dir
refuses 1 "missing/a.sock" run --socket-dir=missing --share a=share
refuses 2 "--guest-channel: 'x'" run --socket-dir=sockets --share a=share --guest-channel=x
refuses 2 "tcp:127.0.0.1:1" run --socket-dir=sockets --share a=share --guest-channel=tcp:127.0.0.1:1x
refuses 1 "missing/guest.sock" run --socket-dir=sockets --share a=share --guest-channel=unix:missing/guest.sock
refuses 1 "option mac" run --socket-dir=sockets --device-string 'virtio-net:eth0;client_mac=00:11:22:33:44:55'
refuses 1 "missing.wslconfig" run --socket-dir=sockets --wslconfig missing.wslconfig
printf '[wsl2]\nvirtiofs=perhaps\n' >bad.wslconfig
refuses 1 "bad.wslconfig:2: wsl2.virtiofs: 'perhaps'" run --socket-dir=sockets --share a=share --wslconfig bad.wslconfig
printf '[wsl2]\nprocessors=2\n' >none.wslconfig
refuses 1 "none.wslconfig does not ask for it: wsl2.virtiofs" run --socket-dir=sockets --share a=share --wslconfig none.wslconfig

# Option strings: on the command line, in a file, through the control socket.
printf 'inside' >share/file
starts run --socket-dir=sockets --share 'a=share;ro;colour=red' \
  --device-string "virtiofs:b;shared-dir=share;vcpus=2" --control-socket=control.sock
logged "device a: unknown option 'colour' is ignored"
[ -S sockets/a.sock ] && [ -S sockets/b.sock ] || complain "no sockets in the directory: $(ls sockets)"
accepts "${CTL[@]}" inspect a
says '"readonly": "true"'
says '"tag": "a"'
accepts "${CTL[@]}" inspect b
says '"request-queues": "2"'
accepts "${CTL[@]}" add virtiofs --device-string 'c;swiotlb=0x10000000,16777216;ro' --shared-dir share --socket-path sockets/c.sock
accepts "${CTL[@]}" inspect c
says '"aperture": "0x10000000,16777216"'
says '"readonly": "true"'
ctl_refuses() {
  local text=$1
  shift
  count=$((count + 1))
  "$VIRTBAY" "${CTL[@]}" "$@" >out 2>err
  [ $? = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -qF -- "$text" err || complain "ctl $*"
}
ctl_refuses "swiotlb: 'lowmem'" add virtiofs --device-string 'd;swiotlb=lowmem' --shared-dir share --socket-path sockets/d.sock
ctl_refuses "option gateway" add proxy-net --device-string 'eth0;client_ip=10.0.0.2;gateway_ip=10.0.9.1' --socket-path sockets/d.sock
refuses_usage() {
  count=$((count + 1))
  "$VIRTBAY" "${CTL[@]}" add virtiofs --shared-dir share --socket-path x.sock 2>err
  [ $? = 2 ] && grep -qF -- --name err || complain "ctl add without a name"
}
refuses_usage
stops TERM
[ -z "$(ls sockets)" ] || complain "sockets left behind: $(ls sockets)"
cat >string.toml <<'TOML'
[[device]]
plugin = "virtiofs"
socket = "used.sock"
device-string = "data;ro"
options = { shared-dir = "share" }
TOML
accepts run --check string.toml

# What a .wslconfig asks for; the guest's kernel has to be started with the line on stdout.
printf '# mine\n[WSL2]\nkernel=C:\\temp\\k\nmemory=4GB\nVirtioFS=true\n[experimental]\nswiotlb=16MB\nvirtioFsAggregateShares=false\n' >each.wslconfig
accepts run --check --socket-dir=sockets --wslconfig each.wslconfig --share a=share
count=$((count + 1))
[ "$(cat out)" = "swiotlb=force hv_pci_swiotlb=16777216" ] || complain "the kernel's command line: $(cat out)"

# The guest's report, end to end.
starts run --socket-dir=sockets --wslconfig each.wslconfig --share a=share --share b=share \
  --control-socket=control.sock --guest-channel=unix:guest.sock
[ "$(stat -c %a guest.sock)" = 600 ] || complain "mode of the guest channel"
guest 0 '' --root empty --send unix:guest.sock
logged "the guest's kernel has no bounce pool for virtio devices"
guest 0 '' --root pool --send unix:guest.sock
logged "the guest's bounce pool is 0x10000000,67108864"
guest 0 '"swiotlb":"0x10000000,67108864"' --root pool --send unix:guest.sock --json
guest 0 '' --root empty --send unix:guest.sock
logged "no bounce pool after 0x10000000,67108864, which stays"
guest 1 'reported the pool' --root other --send unix:guest.sock
accepts "${CTL[@]}" add virtiofs --name late --socket-path late.sock --shared-dir share --set swiotlb=pool --set arena=4M
accepts "${CTL[@]}" inspect late
says '"aperture": "0x10000000,4194304"'
stops TERM
[ ! -e guest.sock ] && [ -z "$(ls sockets)" ] || complain "left behind: $(ls . sockets)"

# One device for all shares.
printf '[wsl2]\nvirtiofs=true\nmemory=512MB\n' >one.wslconfig
starts run --socket-dir=sockets --wslconfig one.wslconfig --share 'a=share;umask=022;xattr=user.a=b' \
  --share 'b=share;ro;default_uid=5;case=off;metadata;symlinkroot=/mnt/' --share 'c=share;ro;default_uid=5;case=off;metadata;symlinkroot=/mnt/' \
  --control-socket=control.sock
logged "share c is the same as b"
[ "$(ls sockets)" = drvfs.sock ] || complain "sockets of one device: $(ls sockets)"
accepts "${CTL[@]}" inspect drvfs
says '"aggregate": "true"'
says '"shares": 2'
stops TERM
refuses 1 "share b: device drvfs: share.add: share /missing/dir" run --socket-dir=sockets --wslconfig one.wslconfig --share b=/missing/dir
refuses 1 "share b: " run --check --socket-dir=sockets --wslconfig one.wslconfig --share "a=share;case=dir" --share b=/missing
accepts run --check --socket-dir=sockets --wslconfig one.wslconfig --share a=share
accepts run --check --socket-dir=sockets --wslconfig one.wslconfig

# A kernel without a pool, although it was asked for.
starts run --socket-dir=sockets --wslconfig each.wslconfig --share a=share --guest-channel=tcp:127.0.0.1:0
PORT=$(sed -n "s/.*waiting for the guest's report at tcp:127.0.0.1://p" log)
guest 0 '' --root empty --send "tcp:127.0.0.1:$PORT"
guest 0 '' --root empty --send "tcp:127.0.0.1:$PORT"
logged "the guest's kernel has no bounce pool"
count=$((count + 1))
[ "$(grep -c "has no bounce pool" log)" = 1 ] || complain "more than one warning"
stops TERM

# The same channel in a file.
{
  printf '[host]\nguest-channel = "unix:guest.sock"\n'
  sed 's/^socket = .*/socket = "sockets\/data.sock"/' string.toml
} >channel.toml
starts run channel.toml
guest 0 '' --root pool --send unix:guest.sock
stops INT

echo "$count checks, $failed failed"
[ $failed = 0 ]
