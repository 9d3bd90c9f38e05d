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

config one.toml a b r=virtio-rng
starts run one.toml
listed a.sock b.sock r.sock
# The same again, then one device less, one more, and a socket elsewhere.
replaces run one.toml
listed a.sock b.sock r.sock
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
# A process that was killed leaves the name of its socket, where nobody listens.
starts run two.toml
kill -KILL "$SERVICE"
wait "$SERVICE" 2>/dev/null
starts run two.toml
stops TERM

echo "$count checks, $failed failed"
[ $failed = 0 ]
