#!/bin/bash
# A process of many devices that another one takes over: by their names, each its own way.
#   cli_handover_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_handover_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
CTL=(--control-socket=control.sock)

# config FILE NAME[=PLUGIN]...: a file of these devices; without a plugin they are shares.
config() {
  local file=$1 device plugin
  shift
  printf '[host]\ncontrol-socket = "control.sock"\nstate-dir = "state"\n' >"$file"
  for device in "$@"; do
    plugin=virtiofs
    [[ $device != *=* ]] || plugin=$BUILD/plugins/${device#*=}.so
    device=${device%%=*}
    printf '[[device]]\nname = "%s"\nplugin = "%s"\nsocket = "%s.sock"\n' "$device" "$plugin" "$device"
    [ "$plugin" != virtiofs ] || printf '[device.options]\nshared-dir = "share"\n'
  done >>"$file"
}
# replaces ARGUMENT...: as starts, but a service that runs has to end by itself, and well.
replaces() {
  local old=$SERVICE status
  cp log log.before
  starts "$@"
  wait "$old"
  status=$?
  [ $status = 0 ] || { complain "the process before: exit status $status"; cat log; }
}
# cannot TEXT ARGUMENT...: ends with status 1 and that text, and the one that runs serves on.
cannot() {
  local text=$1 got before
  shift
  count=$((count + 1))
  before=$(grep -ac "served on" log)
  timeout 20 "$VIRTBAY" "$@" >out 2>err </dev/null
  got=$?
  [ $got = 1 ] || complain "virtbay $*: exit status $got, not 1"
  grep -qF -- "$text" err || complain "virtbay $*: does not say '$text'"
  kill -0 "$SERVICE" || complain "virtbay $*: the process before has ended"
  [ "$(grep -ac "served on" log)" = $((before + 1)) ] || { complain "the process before does not say that it serves on"; cat log; }
  accepts ctl "${CTL[@]}" list
  [ -S a.sock ] || complain "virtbay $*: its socket has gone"
}
listed() {
  accepts ctl "${CTL[@]}" list
  local name
  for name in "$@"; do says "$name"; done
}

# What a service manager is told, each line with the process that says it.
python3 - >notified <<'PYTHON' &
import socket, struct
manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
manager.bind("notify")
while True:
    data, ancillary, _, _ = manager.recvmsg(4096, 256)
    print(struct.unpack("iii", ancillary[0][2])[0], data.decode().replace("\n", " "), flush=True)
PYTHON
PIDS+=($!)
disown
until [ -S notify ]; do sleep 0.05; done
export NOTIFY_SOCKET=$PWD/notify

config one.toml a b r=virtio-rng
starts run one.toml
first=$SERVICE
listed a.sock b.sock r.sock
# The same again, then one device less, one more, and a socket elsewhere.
replaces run one.toml
listed a.sock b.sock r.sock
# By the old one, as long as it was the service.
count=$((count + 1))
grep -qx "$first MAINPID=$SERVICE" notified || { complain "not told of the new process"; cat notified; }
unset NOTIFY_SOCKET
# A socket whose file the host has removed is there again; the same one by another name.
rm a.sock
sed "s,\"b.sock\",\"$PWD/b.sock\"," one.toml >absolute.toml
replaces run absolute.toml
count=$((count + 1))
if [ ! -S a.sock ] || [ ! -S b.sock ]; then complain "a socket is not there: $(echo *.sock)"; fi
replaces run one.toml
config two.toml a c r=virtio-rng
sed -i 's/socket = "r.sock"/socket = "moved.sock"/' two.toml
replaces run two.toml
listed a.sock c.sock moved.sock
count=$((count + 1))
if [ -e b.sock ] || [ -e r.sock ]; then complain "sockets were left behind: $(echo *.sock)"; fi
grep -q "device b has ended with process" log || complain "nobody says that b has ended"
[ "$(grep -c "taken over: .*pause" log)" = 2 ] || { complain "not a line for each device"; cat log; }

# What comes to nothing.
sed 's/shared-dir = "share"/shared-dir = "none"/' two.toml >bad.toml
sed -i 's/name = "c"/name = "d"/;s/c.sock/d.sock/' bad.toml
cannot "which serves on" run bad.toml
config other.toml a=virtio-rng c
cannot "it makes a device of type" run other.toml
sed 's/^plugin = "virtiofs"/&\nrecord = "c.record"/' two.toml >record.toml
cannot "recorded from the start on" run record.toml
# One that cannot be handed over does not keep the others, if it is not asked for.
config op.toml a c r=virtio-rng op=test_op
replaces run op.toml
cannot "device op cannot be handed over: the plugin does not save its state" run op.toml
replaces run two.toml

# Added while it served: it ends, as it is in no file.
accepts ctl "${CTL[@]}" add "$BUILD/plugins/virtio-rng.so" --name e --socket-path e.sock
replaces run two.toml
count=$((count + 1))
[ ! -e e.sock ] || complain "a device that was added has left its socket"
stops TERM
count=$((count + 1))
left=$(echo *.sock state/handover)
[ "$left" = "*.sock state/handover" ] && [ ! -e state/handover ] || complain "left behind: $left"
# A plugin that hangs while its state is saved: the others are served on, and it is as well when it
# comes back.
config hang.toml a h=test_reload_1
printf '[device.options]\nfirst = "hangs_in_save"\ngate = "8"\n' >>hang.toml
gate() {
  rm -f gate
  mkfifo gate
  sleep 300 >gate &
  HOLDER=$!
  PIDS+=("$HOLDER")
  exec 8<gate
}
gate
starts run hang.toml
cannot "device h: its plugin does not come back from saving its state" run hang.toml
cannot "its plugin has not come back from the last time" run hang.toml
accepts ctl "${CTL[@]}" inspect a
kill "$HOLDER"
for i in $(seq 100); do
  grep -q "h: its plugin has come back" log && break
  sleep 0.1
done
replaces run hang.toml
stops TERM
# And the process can be told to stop while it does.
gate
starts run hang.toml
timeout 30 "$VIRTBAY" run hang.toml >out 2>err </dev/null &
other=$!
for i in $(seq 100); do
  accepts ctl "${CTL[@]}" list
  timeout 5 "$VIRTBAY" ctl "${CTL[@]}" add "$BUILD/plugins/virtio-rng.so" --name e --socket-path e.sock >out2 2>err2
  grep -q "being handed over" err2 && break
  timeout 5 "$VIRTBAY" ctl "${CTL[@]}" remove e >out2 2>err2
done
count=$((count + 4))
grep -q "being handed over" err2 || complain "a device can be added while the others are handed over"
kill "$SERVICE"
for i in $(seq 300); do
  kill -0 "$SERVICE" 2>/dev/null || break
  sleep 0.1
done
kill -0 "$SERVICE" 2>/dev/null && complain "a plugin that hangs keeps the process"
wait "$SERVICE"
wait "$other" && complain "the other process has taken over what it was not given"
kill "$HOLDER"
# Or it comes back while its device is being removed.
gate
starts run hang.toml
cannot "device h: its plugin does not come back from saving its state" run hang.toml
timeout 20 "$VIRTBAY" ctl "${CTL[@]}" remove h >out2 2>err2 &
remover=$!
sleep 0.5
kill "$HOLDER"
wait "$remover" || complain "a device that was late cannot be removed: $(cat err2)"
stops TERM
exec 8<&-
# A process that was killed leaves the name of its socket, where nobody listens.
starts run two.toml
kill -KILL "$SERVICE"
wait "$SERVICE" 2>/dev/null
starts run two.toml
stops TERM
# The kernel may close the sockets of one that was killed after its lock: they are waited for.
python3 - >listens <<'PYTHON' &
import socket, time
held = []
for name in ["control.sock", "a.sock"]:
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].bind(name)
    held[-1].listen()
print("listens", flush=True)
time.sleep(0.5)
PYTHON
PIDS+=($!)
for i in $(seq 200); do [ -s listens ] && break; sleep 0.1; done
starts run two.toml
stops TERM

echo "$count checks, $failed failed"
[ $failed = 0 ]
