#!/bin/bash
# The executable's command line: exit statuses, one clear line on stderr, nothing left behind.
#   cli_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_test.sh BUILD_DIR}
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../scripts" && pwd)
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"

SERVE=(serve virtiofs --socket-path=new.sock --shared-dir=share)

# Usage.
refuses 2 "subcommand"
refuses 2 "--bogus" --bogus
# An empty value does not take the next option for its own.
for option in --tag --socket-path --shared-dir --cache --control-socket; do
  refuses 2 "$option: is empty" serve virtiofs --shared-dir=share --socket-path=x.sock $option= --readonly
done
refuses 1 "ready-fd 77" serve virtiofs --shared-dir=share --socket-path=x.sock --ready-fd=77
refuses 2 "--shared-dir" serve virtiofs --socket-path=new.sock
refuses 2 "--socket-path" serve virtiofs --shared-dir=share
refuses 2 "--bogus" "${SERVE[@]}" --bogus
refuses 2 "--cache" "${SERVE[@]}" --cache=sometimes
refuses 2 "--request-queues" "${SERVE[@]}" --request-queues=9
refuses 2 "--arena-size" "${SERVE[@]}" --arena-size=huge
refuses 2 "--rlimit-nofile: '-5'" "${SERVE[@]}" --rlimit-nofile=-5
refuses 2 "--rlimit-nofile: '1'" "${SERVE[@]}" --rlimit-nofile=1
refuses 2 "--arena-policy" "${SERVE[@]}" --arena-policy=none
refuses 2 "--arena-size" "${SERVE[@]}" --arena-policy=shared --arena-size=4M
refuses 2 "--rings" "${SERVE[@]}" --rings=pool
refuses 2 "--poll-window" "${SERVE[@]}" --poll-window=5
refuses 2 "--log-level" "${SERVE[@]}" --log-level=loud
refuses 2 "--name" "${SERVE[@]}" --name=a/b
for size in abc -1 1.5 64x 99999999999; do
  refuses 2 "--thread-pool-size" "${SERVE[@]}" --thread-pool-size=$size
done
refuses 2 "--inode-file-handles" "${SERVE[@]}" --inode-file-handles=sometimes
refuses 2 "--fd" "${SERVE[@]}" --fd=5
refuses 2 "-o bogus" "${SERVE[@]}" -o bogus=1
refuses 2 "--option tag: given twice" "${SERVE[@]}" --option tag=a --option tag=b
for pool in pool pool,16M pool,all; do
  refuses 2 "--swiotlb: a pool that the guest reports" "${SERVE[@]}" --swiotlb=$pool
done
# Ranges of the guest's memory that meet, unless both devices say that they share one.
ranges() {
  printf '[[device]]\nname = "%s"\nplugin = "virtiofs"\nsocket = "%s.sock"\noptions = { shared-dir = "share" }\nswiotlb = "%s"\n' \
    a a "$1" b b "$2" >ranges.toml
}
ranges 0x40000000,4M 0x40200000,4M
refuses 1 "ranges.toml:7: device b: cannot have 0x40200000,4194304 of the guest's memory: device a has 0x40000000,4194304" \
  run --check ranges.toml
ranges 0x40000000,4M,all 0x40000000,4M,all
accepts run --check ranges.toml
for type in virtio-net proxy-net; do
  refuses 2 "--option mtu: given twice" serve $type --socket-path=new.sock --option mtu=1 --option mtu=2
  refuses 2 "--swiotlb: a pool that the guest reports" serve $type --socket-path=new.sock --swiotlb=pool
done
refuses 2 "--umask" "${SERVE[@]}" --umask=9
refuses 2 "--shared-dir" "${SERVE[@]}" --share=a=share
refuses 2 "NAME=DIR" serve virtiofs --socket-path=new.sock --share=a
refuses 1 "share a: " serve virtiofs --socket-path=new.sock --share=a=/missing/dir
refuses 2 "device" ctl share add
refuses 2 "subcommand" ctl share
refuses 2 "map:3:9:1" "${SERVE[@]}" --translate-uid=map:0:1:5 --translate-uid=map:3:9:1
refuses 2 "file" run
refuses 2 "b" ctl log-level a b
refuses 2 "subcommand" serve
refuses 2 "--bogus" serve --bogus
refuses 2 "KEY=VALUE" ctl add virtiofs --name=n --socket-path=s --option=novalue

# A network device.
NET=(serve virtio-net --socket-path=new.sock)
refuses 2 "--tap: missing" "${NET[@]}"
refuses 2 "--socket-path" serve virtio-net --backend=null
refuses 2 "--bogus" "${NET[@]}" --bogus
refuses 2 "--fd" "${NET[@]}" --fd=5
refuses 2 "--tap: is empty" "${NET[@]}" --tap= --mtu=1500
refuses 2 "KEY=VALUE" "${NET[@]}" --option=novalue
refuses 2 "--dma" "${NET[@]}" --backend=null --dma=sideways
refuses 2 "--backend" "${NET[@]}" --backend=cable
refuses 2 "--mac" "${NET[@]}" --backend=null --mac=01:00:00:00:00:00
refuses 2 "--mtu" "${NET[@]}" --backend=null --mtu=20
refuses 2 "--queue-pairs" "${NET[@]}" --backend=null --queue-pairs=17
refuses 2 "--tx-rate" "${NET[@]}" --backend=null --tx-rate=fast
refuses 1 "option tap-fd: descriptor 77" "${NET[@]}" --tap-fd=77
refuses 1 "option tap-fd: descriptor 0 is no TAP interface" "${NET[@]}" --tap-fd=0
refuses 1 "option pcap: /missing/dir/file" "${NET[@]}" --backend=null --pcap=/missing/dir/file
accepts "${NET[@]}" --backend=null --mtu=9000 --queue-pairs=4 --check
PROXY=(serve proxy-net --socket-path=new.sock)
refuses 2 "--socket-path" serve proxy-net
refuses 2 "--tap" "${PROXY[@]}" --tap=vm0
refuses 2 "--forward: 'tcp:80' is no forward" "${PROXY[@]}" --forward=tcp:80
refuses 2 "--allow" "${PROXY[@]}" --allow=everything
refuses 2 "--queue-pairs" "${PROXY[@]}" --queue-pairs=1000
accepts "${PROXY[@]}" --queue-pairs=2 --check
refuses 2 "--max-buffer-mib" "${PROXY[@]}" --max-buffer-mib=0
refuses 2 "--mtu" "${PROXY[@]}" --mtu=1000
accepts "${PROXY[@]}" --forward=tcp:0:80 --forward=udp:0:53 --deny=10.0.0.0/8 --allow=any --check
# A device of any plugin.
refuses 2 "file" serve plugin --socket-path=new.sock
refuses 2 "--socket-path" serve plugin virtio-blk
refuses 2 "--bogus" serve plugin virtio-blk --socket-path=new.sock --bogus
refuses 1 "no-such-plugin" serve plugin no-such-plugin --socket-path=new.sock
refuses 1 "plugin ./missing.so: no such file" serve plugin ./missing.so --socket-path=new.sock
refuses 1 "device 'virtio-blk': " serve plugin "$BUILD/plugins/virtio-blk.so" --socket-path=new.sock
refuses 1 "option file: missing" serve plugin virtio-blk --socket-path=new.sock
refuses 1 "'sideways'" serve plugin virtio-console --socket-path=new.sock --type=sideways
refuses 2 "see --name" serve plugin 'a b' --socket-path=new.sock
accepts serve plugin virtio-9p --socket-path=new.sock --option shared-dir=share --check
accepts serve plugin "$BUILD/plugins/virtio-console.so" --socket-path=new.sock --name=con --check
refuses 2 "device" ctl device
refuses 2 "command" ctl device net

# The scripts.
script() {
  count=$((count + 1))
  timeout 20 "$@" >out 2>err </dev/null
  [ $? = 2 ] && [ "$(wc -l <err)" = 1 ] && [ ! -s out ] || complain "$*"
}
script "$SCRIPTS/setup.sh" --foo
script "$SCRIPTS/setup.sh" ''
script "$SCRIPTS/setup.sh" --help more
script "$SCRIPTS/demo.sh" --foo
script "$SCRIPTS/demo.sh" ''
script "$SCRIPTS/demo.sh" --in-process --foo
script "$SCRIPTS/test.sh" --foo

# Things that are not there, or in the way.
refuses 1 "/missing/dir" serve virtiofs --socket-path=new.sock --shared-dir=/missing/dir
touch plain
refuses 1 "plain" serve virtiofs --socket-path=new.sock --shared-dir=plain
if [ "$(id -u)" != 0 ]; then
  mkdir -m 0 hidden
  refuses 1 "hidden" serve virtiofs --socket-path=new.sock --shared-dir=hidden
fi
refuses 1 "plain" serve virtiofs --socket-path=plain --shared-dir=share
refuses 1 "/missing/new.sock" serve virtiofs --socket-path=/missing/new.sock --shared-dir=share
long=$(printf 'x%.0s' $(seq 120))
refuses 1 "$long" serve virtiofs --socket-path="$long" --shared-dir=share
refuses 1 "fd 77" serve virtiofs --fd=77 --shared-dir=share
refuses 1 "fd 3" serve virtiofs --fd=3 --shared-dir=share
refuses 1 "fd 0" serve virtiofs --fd=0 --shared-dir=share
refuses 1 "no-such-group" "${SERVE[@]}" --socket-group=no-such-group
refuses 1 "/missing/control" "${SERVE[@]}" --control-socket=/missing/control
refuses 2 "--attr-timeout" "${SERVE[@]}" --attr-timeout=soon
refuses 1 "missing.toml" run missing.toml
refuses 1 "share" run share
refuses 1 "missing.sock" ctl --control-socket=missing.sock list

# Files.
printf 'log-level = "info"\n' >bad1.toml
refuses 1 "bad1.toml:1: log-level: unknown key" run bad1.toml
printf '[host]\nlog-level = 5\n' >bad2.toml
refuses 1 "bad2.toml:2: log-level: must be a string" run bad2.toml
printf '\n[host\n' >bad3.toml
refuses 1 "bad3.toml:2: syntax" run bad3.toml
device() { printf '[[device]]\nname = "%s"\nplugin = "%s"\nsocket = "%s.sock"\n[device.options]\n%s\n' "$@"; }
{ device a virtiofs a 'shared-dir = "share"'; device a virtiofs b 'shared-dir = "share"'; } >bad4.toml
refuses 1 "bad4.toml:8: name: 'a'" run bad4.toml
{ device a virtiofs a 'shared-dir = "share"'; device b virtiofs b 'shared-dir = "/missing/dir"'; } >bad5.toml
refuses 1 "bad5.toml:12: options.shared-dir: /missing/dir: " run bad5.toml
refuses 1 "/missing/dir" run bad5.toml
{ device a virtiofs a 'shared-dir = "share"
colour = "red"'; } >bad6.toml
refuses 1 "bad6.toml:7: options.colour: " run bad6.toml
device a no-such-plugin a 'x = 1' >bad7.toml
refuses 1 "no-such-plugin" run bad7.toml
printf 'not a library' >broken.so
device a ./broken.so a 'x = 1' >bad8.toml
refuses 1 "broken.so" run bad8.toml
refuses 1 "bad8.toml:1: " run bad8.toml
# The same where nothing is to be served, and of values that only the plugin can judge.
{ device a virtiofs a 'shared-dir = 5'; } >bad9.toml
{ device a virtiofs a 'tag = "t"'; } >bad10.toml
{ device a virtiofs a 'shared-dir = "share"
readonly = 1'; } >bad11.toml
{ device a virtiofs a 'shared-dir = "share"'; device b virtiofs b 'shared-dir = "share"
tag = "t"
cache = "sometimes"'; } >bad12.toml
{ device a virtiofs a 'shared-dir = "share"
attr-timeout = true'; } >bad13.toml
{ device a virtiofs a 'shared-dir = "share"
request-queues = 2.5'; } >bad14.toml
{ device a virtiofs a 'shared-dir = "share"' | sed "s/a.sock/$long/"; } >bad15.toml
{ device a virtiofs a 'shared-dir = "share"
umask = 22'; } >bad16.toml
for check in "" --check; do
  refuses 1 "bad5.toml:12: options.shared-dir: /missing/dir: No such file" run $check bad5.toml
  refuses 1 "bad6.toml:7: options.colour: there is no such option" run $check bad6.toml
  refuses 1 "bad7.toml:1: " run $check bad7.toml
  refuses 1 "bad8.toml:1: " run $check bad8.toml
  refuses 1 "bad9.toml:6: options.shared-dir: must be a string" run $check bad9.toml
  refuses 1 "bad10.toml:1: options.shared-dir: is missing" run $check bad10.toml
  refuses 1 "bad11.toml:7: options.readonly: must be true or false" run $check bad11.toml
  refuses 1 "bad12.toml:14: options.cache: \"sometimes\" is not one of" run $check bad12.toml
  refuses 1 "bad13.toml:7: options.attr-timeout: must be a number" run $check bad13.toml
  refuses 1 "bad14.toml:7: options.request-queues: must be an integer" run $check bad14.toml
  refuses 1 "bad15.toml:1: " run $check bad15.toml
  refuses 1 "bad16.toml:7: options.umask: must be a string" run $check bad16.toml
done
{ printf '[host]\ncontrol-socket = "control.sock"\n'
  device a virtiofs a 'shared-dir = "share"
attr-timeout = 5
entry-timeout = 0.5
request-queues = "2"
readonly = true
writeback = "yes"'; device b virtiofs b 'shared-dir = "share"'; } >good.toml
accepts run --check good.toml
[ ! -s err ] && [ ! -s out ] && [ -z "$(ls -A | grep sock)" ] || complain "run --check says or leaves something"
refuses 1 "broken.so" plugin inspect broken.so
refuses 1 "missing.so" plugin inspect ./missing.so
refuses 2 "file" plugin check
refuses 2 "--limit" plugin check virtio-console --limit=0
refuses 1 "1 clauses of the contract fail" plugin check ./broken.so
says "FAIL  abi"
says "broken.so"
refuses 1 "no-such-plugin" plugin check no-such-plugin
refuses 2 "name" plugin new
refuses 2 "--type" plugin new x --type=gpu
refuses 1 "is no name for a plugin" plugin new X
refuses 1 "CMake has a target of that name" plugin new test
refuses 1 "share: there already" plugin new x --dir=share
rm -f ./*.toml ./*.so plain
rmdir hidden 2>/dev/null

# Answers.
accepts --version
says "virtbay "
accepts --help
accepts serve virtiofs --help
says "--shared-dir"
accepts serve virtiofs --print-capabilities
says '"type": "fs"'
says '"separate-options"'
accepts serve virtiofs --version
accepts plugin inspect virtiofs
says "virtiofs:26"
accepts plugin inspect --json virtiofs
says '"abi_major":1'
accepts plugin check virtio-console
says "pass  requests"
accepts plugin check --json "$BUILD/plugins/virtio-9p.so" --option shared-dir=share
says '"clause":"state"'
rm -rf share && mkdir share
ln -s "$VIRTBAY" virtiofsd
count=$((count + 1))
./virtiofsd --print-capabilities | grep -q '"type": "fs"' || complain "as virtiofsd: --print-capabilities"
rm virtiofsd

# Output that does not arrive; what is not written to may be full or closed.
loses() {
  count=$((count + 2))
  timeout 20 "$VIRTBAY" "$@" >/dev/full 2>err </dev/null
  [ $? = 1 ] && [ "$(cat err)" = "virtbay: standard output: No space left on device" ] || complain "virtbay $* >/dev/full"
  timeout 20 "$VIRTBAY" "$@" >&- 2>err </dev/null
  [ $? = 1 ] && [ "$(cat err)" = "virtbay: standard output: Bad file descriptor" ] || complain "virtbay $* >&-"
}
loses --help
loses --version
loses serve virtiofs --print-capabilities
loses plugin inspect virtiofs
loses plugin inspect --json virtiofs
loses plugin check virtio-console
count=$((count + 2))
printf '[host]\ncontrol-socket = "control.sock"\n' >none.toml
"$VIRTBAY" run --check none.toml >/dev/full 2>err && [ ! -s err ] || complain "run --check >/dev/full"
"$VIRTBAY" run --check none.toml >&- 2>err && [ ! -s err ] || complain "run --check >&-"
rm none.toml
# A reader that is gone is no news: SIGPIPE ends the process, or where that is ignored nothing does.
for ignored in '' 'trap "" PIPE; '; do
  count=$((count + 1))
  ( eval "$ignored"; "$VIRTBAY" plugin check virtio-console 2>err </dev/null; echo $? >out ) | head -n 1 >/dev/null
  case $(cat out) in 141 | 0) [ ! -s err ] ;; *) false ;; esac || complain "${ignored}plugin check | head: exit status $(cat out)"
done
GUEST=$BUILD/bin/virtbay-guest
for report in --help --version --json; do
  count=$((count + 2))
  "$GUEST" $report >/dev/full 2>err
  [ $? = 1 ] && [ "$(cat err)" = "virtbay-guest: standard output: No space left on device" ] || complain "virtbay-guest $report >/dev/full"
  "$GUEST" $report >&- 2>err
  [ $? = 1 ] && [ "$(cat err)" = "virtbay-guest: standard output: Bad file descriptor" ] || complain "virtbay-guest $report >&-"
done

# Service: sockets, control, stop.
starts serve virtiofs --socket-path=used.sock --shared-dir=share --tag=t --control-socket=control.sock \
  --thread-pool-size=64 --sandbox=none -o cache=none,no_posix_lock
refuses_used() {
  count=$((count + 1))
  "$VIRTBAY" serve virtiofs --socket-path=used.sock --shared-dir=share 2>err
  [ $? = 1 ] && grep -q 'used.sock' err && [ -S used.sock ] || complain "a socket in use"
  "$VIRTBAY" serve virtiofs --socket-path=x.sock --shared-dir=share --control-socket=control.sock 2>err
  [ $? = 1 ] && grep -q 'control.sock' err && [ -S control.sock ] && [ ! -e x.sock ] ||
    complain "a control socket in use"
}
refuses_used
CTL=(ctl --control-socket=control.sock)
[ "$(stat -c %a control.sock used.sock | tr '\n' ' ')" = "600 600 " ] || complain "socket modes"
accepts "${CTL[@]}" list
says used.sock
accepts "${CTL[@]}" add virtiofs --name second --socket-path second.sock --shared-dir share --set arena-size=4M
accepts "${CTL[@]}" inspect second
says '"name": "second"'
accepts "${CTL[@]}" --json stats
says '"name":"second"'
accepts "${CTL[@]}" stats
accepts "${CTL[@]}" stats --prometheus
says '# TYPE virtbay_queue_requests_total counter'
says 'virtbay_arena_bytes{device="second"} 4194304'
accepts "${CTL[@]}" log-level debug
says debug
loses "${CTL[@]}" list
loses "${CTL[@]}" inspect second
loses "${CTL[@]}" --json stats
loses "${CTL[@]}" stats
loses "${CTL[@]}" stats --prometheus
# A pool that the guest reports: slices of it, and their end.
accepts "${CTL[@]}" guest 0x10000000,64M
accepts "${CTL[@]}" add virtiofs --name slice --socket-path slice.sock --shared-dir share --set swiotlb=pool,16M
accepts "${CTL[@]}" inspect slice
says '"aperture": "0x10000000,16777216"'
says '"dma_mode": "aperture"'
accepts "${CTL[@]}" remove slice
ctl_refuses() {
  local text=$1
  shift
  count=$((count + 1))
  "$VIRTBAY" "${CTL[@]}" "$@" >out 2>err
  [ $? = 1 ] && [ "$(wc -l <err)" = 1 ] && grep -qF -- "$text" err || complain "ctl $*"
}
ctl_refuses second add virtiofs --name second --socket-path third.sock --shared-dir share
ctl_refuses /missing add virtiofs --name third --socket-path third.sock --shared-dir /missing
ctl_refuses used.sock add virtiofs --name third --socket-path used.sock --shared-dir share
ctl_refuses colour add virtiofs --name third --socket-path third.sock --shared-dir share --option colour=red
ctl_refuses 'unknown key' add virtiofs --name third --socket-path third.sock --shared-dir share --set colour=red
ctl_refuses systemd add virtiofs --name third --socket-path systemd --shared-dir share
ctl_refuses systemd:a add virtiofs --name third --socket-path systemd:a --shared-dir share
[ -z "$(ls -d systemd* 2>/dev/null)" ] || complain "left behind $(ls -d systemd*)"
ctl_refuses third inspect third
ctl_refuses third remove third
[ ! -e third.sock ] || complain "left behind third.sock"
accepts "${CTL[@]}" remove second
[ ! -e second.sock ] || complain "left behind second.sock"
stops TERM
[ -z "$(ls -A | grep sock)" ] || complain "sockets left behind: $(ls)"

# The log: its level, and where it goes.
starts "${SERVE[@]}" --control-socket=control.sock -d --inode-file-handles=prefer
accepts "${CTL[@]}" log-level
says debug
stops TERM
grep -q 'serving 1 device' log || complain "no log on stderr"
starts "${SERVE[@]}" --control-socket=control.sock -o debug
accepts "${CTL[@]}" log-level
says debug
stops TERM
starts "${SERVE[@]}" --control-socket=control.sock -d --log-level=warn
accepts "${CTL[@]}" log-level
says warn
stops TERM
starts "${SERVE[@]}" --syslog
stops TERM
[ ! -s log ] || complain "with --syslog the log is on stderr"

# A stale socket (its owner was killed) is replaced.
starts serve virtiofs --socket-path=used.sock --shared-dir=share
kill -KILL "$SERVICE"
wait "$SERVICE" 2>/dev/null
[ -S used.sock ] || complain "no stale socket to test with"
starts serve virtiofs --socket-path=used.sock --shared-dir=share
stops INT

# Inherited sockets: by number, and from systemd (which sets LISTEN_PID to the service itself).
inherit() {
  exec python3 -c '
import os, socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind("inherited.sock")
listener.listen()
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
if sys.argv[1] == "systemd":
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="data")
os.execv(sys.argv[2], sys.argv[2:])
' "$@"
}
if command -v python3 >/dev/null; then
  SHARE=(serve virtiofs --shared-dir=share --control-socket=control.sock)
  TAKES=("${SHARE[@]}" --fd=3)
  for how in number systemd; do
    [ $how = number ] || TAKES=("${SHARE[@]}")
    mkfifo ready
    exec {hold}<>ready
    ( inherit $how "$VIRTBAY" "${TAKES[@]}" --ready-fd=9 ) 9>ready {hold}<&- </dev/null 2>log &
    SERVICE=$!
    PIDS+=("$SERVICE")
    read -r -t 20 -u "$hold" || { complain "$how: an inherited socket"; cat log; }
    exec {hold}<&-
    rm -f ready
    accepts "${CTL[@]}" list
    says "fd 3"
    stops TERM
    # Whoever made it removes it.
    [ -S inherited.sock ] || complain "the inherited socket was removed"
    rm -f inherited.sock
  done
fi

# A connection that was made before: with it the process ends, unless it can be given devices.
if command -v python3 >/dev/null; then
  count=$((count + 1))
  timeout 60 python3 -c '
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
fd = theirs.fileno()
server = subprocess.Popen(sys.argv[1:] + [f"--fd={fd}"], pass_fds=[fd], stderr=open("log", "w"))
theirs.close()
try:
    server.wait(1)
    sys.exit("ended although the front-end is there")
except subprocess.TimeoutExpired:
    ours.close()
try:
    sys.exit(server.wait(20))
except subprocess.TimeoutExpired:
    server.kill()
    sys.exit("still there without its front-end")
' "$VIRTBAY" serve virtiofs --shared-dir=share || { complain "a connected socket"; cat log; }
fi

# Nothing of the process is written to in place of a stream that is closed.
count=$((count + 1))
mkfifo ready
exec {hold}<>ready
"$VIRTBAY" serve virtiofs --shared-dir=share --socket-path=closed.sock --ready-fd=9 9>ready {hold}<&- <&- >&- 2>&- &
SERVICE=$!
PIDS+=("$SERVICE")
read -r -t 20 -u "$hold" || complain "without standard streams"
for fd in 0 1 2; do
  [ "$(readlink /proc/$SERVICE/fd/$fd)" = /dev/null ] || complain "descriptor $fd is $(readlink /proc/$SERVICE/fd/$fd)"
done
exec {hold}<&-
rm -f ready
stops HUP
[ ! -e closed.sock ] || complain "left behind closed.sock"
NOTIFY_SOCKET=/missing/notify starts serve virtiofs --socket-path=notify.sock --shared-dir=share
stops TERM
( ulimit -n 10; timeout 20 "$VIRTBAY" serve virtiofs --rlimit-nofile=0 --socket-path=few.sock --shared-dir=share ) 2>/dev/null
[ ! -e few.sock ] || complain "left behind few.sock"

# Many shares on one device.
starts serve virtiofs --socket-path=all.sock --share='one=share;ro' --name=all --control-socket=control.sock
accepts "${CTL[@]}" share add all share --name=two --option=umask=022
says two
accepts "${CTL[@]}" share add all share --option=umask=22
says two
accepts "${CTL[@]}" share list all
says "readonly=true"
says "umask=022"
accepts "${CTL[@]}" share remove all one
count=$((count + 1))
"$VIRTBAY" "${CTL[@]}" share remove all one 2>err
[ $? = 1 ] && grep -qF "there is no share one" err || complain "a share is removed twice"
accepts "${CTL[@]}" --json share list all
grep -qF '"one"' out && complain "share one is listed still"
stops TERM
{ printf '[[device]]\nname = "all"\nplugin = "virtiofs"\nsocket = "all.sock"\n'
  printf '[[device.share]]\npath = "share"\n[[device.share]]\npath = "share"\numask = "9"\n'; } >all.toml
for check in "" --check; do
  count=$((count + 1))
  timeout 20 "$VIRTBAY" run $check all.toml >out 2>err </dev/null
  [ $? = 1 ] && grep -q '^virtbay: all.toml:7: share share: .*umask' err || complain "a wrong share of a file"
done
rm -f all.toml

# Many devices in one process.
{
  printf '[host]\ncontrol-socket = "control.sock"\n'
  for i in $(seq 40); do
    device "d$i" virtiofs "d$i" 'shared-dir = "share"'
    printf '[[device]]\n'
  done | sed '$d'
} | awk '/^\[\[device\]\]$/ { if (held) next; held = 1; print; next } { held = 0; print }' >many.toml
starts run many.toml
accepts "${CTL[@]}" --json list
says '"d40"'
stops TERM
[ -z "$(ls -A | grep sock)" ] || complain "sockets left behind: $(ls)"

echo "$count checks, $failed failed"
[ $failed = 0 ]
