#!/bin/bash
# `--contain`: a plugin that crashes takes its device with it, and without the option the process.
#   cli_contain_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_contain_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
KEPT="$KEPT|log|a.sock|b.sock|control.sock|ready|core.*"
CTL=(--control-socket=control.sock)
ulimit -c 0

logged() {
  count=$((count + 1))
  grep -qF -- "$1" log || { complain "the log does not say '$1'"; cat log; }
}

cp "$BUILD/plugins/test_reload_1.so" counting.so
cp "$BUILD/plugins/test_reload_2.so" new.so
cp "$BUILD/bad_plugins/init_crashes.so" "$BUILD/bad_plugins/load_crashes.so" .
devices() {
  cat <<'TOML'
control-socket = "control.sock"
[[device]]
name = "a"
plugin = "./counting.so"
socket = "a.sock"
[[device]]
name = "b"
plugin = "./counting.so"
socket = "b.sock"
TOML
}
{ echo "[host]"; devices; } >two.toml
{ echo "[host]"; echo "contain = true"; devices; } >contained.toml

starts run two.toml --contain
if grep -q "has no effect" log; then # a build with sanitizers
  stops TERM
  echo "$count checks, $failed failed"
  [ $failed = 0 ]
  exit
fi
accepts ctl "${CTL[@]}" inspect a
says '"tainted": false'
refuses 1 "init: the plugin crashed: SIGABRT" reload a --from init_crashes.so "${CTL[@]}"
logged "init_crashes.so (bad 1.0, build test) crashed: SIGABRT in init of device a, generation 2"
logged "Init+0x"
logged "the process is tainted"
refuses 1 "load(): the plugin crashed: SIGFPE" reload a --from load_crashes.so "${CTL[@]}"
accepts ctl "${CTL[@]}" inspect b
says '"tainted": true'
accepts ctl "${CTL[@]}" inspect a
says '"generation": 1'
says '"crashes": 0'
accepts ctl "${CTL[@]}" stats --prometheus
says 'virtbay_process_tainted 1'
says 'virtbay_device_crashes_total{device="a"} 0'
accepts reload a --from new.so "${CTL[@]}"
stops TERM

starts run contained.toml
refuses 1 "init: the plugin crashed: SIGABRT" reload a --from init_crashes.so "${CTL[@]}"
stops TERM

# The same report, and the same end as ever.
starts run two.toml
count=$((count + 1))
timeout 20 "$VIRTBAY" reload a --from init_crashes.so "${CTL[@]}" >out 2>err </dev/null &&
  complain "a reload by a process that has crashed"
wait "$SERVICE"
status=$?
[ $status = 134 ] || complain "the service ended with status $status, not by SIGABRT"
logged "init_crashes.so (bad 1.0, build test) crashed: SIGABRT in init of device a, generation 2"
logged "Init+0x"
echo "$count checks, $failed failed"
[ $failed = 0 ]
