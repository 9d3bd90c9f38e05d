#!/bin/bash
# `virtbay trace`: the file that it leaves, and what it refuses.
#   cli_trace_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_trace_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
KEPT="$KEPT|log|a.sock|b.sock|control.sock|fifo|request|.*\.json"
CTL=(--control-socket=control.sock)

# holds FILE DEVICES: a trace of so many devices with one queue track each at least, whose spans end.
holds() {
  count=$((count + 1))
  python3 - "$1" "$2" <<'PY' || complain "$1 is not a trace of $2 devices"
import collections, json, sys
trace = json.load(open(sys.argv[1]))
events = trace["traceEvents"]
assert trace["otherData"]["dropped"] == 0
processes = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
threads = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
assert len(processes) == int(sys.argv[2]) and processes == threads, (processes, threads)
phases = collections.Counter(e["ph"] for e in events)
assert phases["b"] == phases["e"] and phases["B"] == phases["E"], phases
PY
}

cat >two.toml <<TOML
[host]
control-socket = "control.sock"
[[device]]
name = "a"
plugin = "$BUILD/plugins/test_reload_1.so"
socket = "a.sock"
[[device]]
name = "b"
plugin = "$BUILD/plugins/test_reload_1.so"
socket = "b.sock"
TOML

refuses 2 "--output is required" trace a
refuses 2 "--duration" trace a --output t.json --duration 0
refuses 2 "--duration" trace a --output t.json --duration 3601
refuses 2 "--duration: must be above 0 and at most 3600" trace a --output t.json --duration inf
refuses 1 "nowhere.sock" trace a --output t.json --control-socket=nowhere.sock

starts run two.toml
accepts trace --output all.json --duration 0.1 "${CTL[@]}"
says "all.json: 0 events of 2 devices"
holds all.json 2
accepts trace a --output one.json --duration 0.1 --json "${CTL[@]}"
says '"devices":1'
holds one.json 1
# A shorter trace over a longer file.
head -c 100000 /dev/zero >one.json
accepts trace b --output one.json --duration 0.1 "${CTL[@]}"
holds one.json 1
refuses 1 "device c: does not exist" trace c --output none.json --duration 0.1 "${CTL[@]}"
refuses 1 "none/t.json" trace a --output none/t.json --duration 0.1 "${CTL[@]}"
refuses 1 "share" trace a --output share --duration 0.1 "${CTL[@]}"
mkfifo fifo
refuses 1 "fifo" trace a --output fifo --duration 0.1 "${CTL[@]}"
# Of a device that is being traced; after a failure nothing is left of it.
echo '{"command":"trace","output":"'"$PWD"'/long.json","seconds":3600}' >request
mkfifo begun
python3 - <<'PY' &
import signal, socket
s = socket.socket(socket.AF_UNIX)
s.connect("control.sock")
s.sendall(open("request", "rb").read())
assert b'"ok":true' in s.makefile("rb").readline()
open("begun", "w").close()
signal.pause()
PY
HOLDER=$!
PIDS+=("$HOLDER")
read -r <begun
rm begun
refuses 1 "device a is being traced already" trace a --output other.json --duration 0.1 "${CTL[@]}"
# It ends with whoever asked.
kill -KILL $HOLDER
wait $HOLDER 2>/dev/null
count=$((count + 1))
for i in $(seq 100); do
  timeout 20 "$VIRTBAY" trace a --output other.json --duration 0.1 "${CTL[@]}" >out 2>err && break
done
[ "$i" != 100 ] || complain "a trace goes on without the one who asked"
holds long.json 2
rm request
"$VIRTBAY" trace --output last.json --duration 600 "${CTL[@]}" >/dev/null 2>&1 &
HOLDER=$!
PIDS+=("$HOLDER")
for i in $(seq 100); do
  [ -e last.json ] && break
  sleep 0.05
done
# The end of the process ends the trace, with its file whole.
stops TERM
holds last.json 2
# Whoever waits for it learns that at once.
count=$((count + 1))
timeout 20 tail --pid=$HOLDER -f /dev/null || complain "virtbay trace waits for a process that has gone"
echo "$count checks, $failed failed"
[ $failed = 0 ]
