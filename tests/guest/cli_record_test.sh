#!/bin/bash
# `virtbay record` and `virtbay replay`: the file that one leaves, what the other makes of it, and what
# both refuse.
#   cli_record_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_record_test.sh BUILD_DIR}
HERE=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
. "$HERE/cli_lib.sh"
ulimit -c 0
KEPT="$KEPT|log|a.sock|control.sock|fifo|garbage|.*\.record"
CTL=(--control-socket=control.sock)
PLUGIN=$BUILD/plugins/test_op.so

# write FILE TYPE OPTIONS OP...: a record of the test's device with one answered request for each OP, as
# docs/record.md lays it out; OP is the number and the first argument of a command, and its queue.
write() {
  python3 - "$@" <<'PY'
import json, struct, sys
path, kind, options, *ops = sys.argv[1:]
head = json.dumps({"type": kind, "plugin": "test", "options": json.loads(options),
                   "features": "0x100000000", "queues": 1, "bytes": 256, "whole": True}).encode()
out = b"VBRECRD1" + struct.pack("<I", len(head)) + head
queue = 0
def record(ns, ident, kind, written=0, readable=(), writable=(), data=b""):
    body = struct.pack("<QQIIIIII", ns, ident, queue, written, len(readable), len(writable),
                       len(data), kind)
    body += b"".join(struct.pack("<I", n) for n in (*readable, *writable)) + data
    return struct.pack("<I", len(body)) + body
for number, op in enumerate(ops, 1):
    code, argument = map(int, op.split(":")[:2])
    queue = int((op.split(":") + [0])[2])
    command = struct.pack("<IiIIQ", code, -1, argument, 0, 0)
    out += record(10 * number, number, 1, readable=[len(command)], writable=[64], data=command)
    out += record(10 * number + 1, number, 2, written=8, data=bytes(8))
open(path, "wb").write(out)
PY
}
# The numbers of tests/unit/op_device.h.
ECHO=0:0 HOLD=2:0 FAIL=24:0 CRASH=28:0

cat >one.toml <<TOML
[host]
control-socket = "control.sock"
[[device]]
name = "a"
plugin = "$PLUGIN"
socket = "a.sock"
record = "start.record"
record-payload = true
TOML

refuses 2 "--output is required" record a
refuses 2 "device is required" record --output r.record
refuses 2 "--duration" record a --output r.record --duration 0
refuses 1 "nowhere.sock" record a --output r.record --control-socket=nowhere.sock
starts run one.toml
# It is recorded from its start on.
refuses 1 "device a is being recorded already" record a --output r.record --duration 0.1 "${CTL[@]}"
stops TERM
accepts replay start.record --plugin "$PLUGIN"
says "start.record: 0 requests"

sed -i '/record/d' one.toml
starts run one.toml
accepts record a --output r.record --duration 0.1 "${CTL[@]}"
says "r.record: 0 records of 1 devices"
accepts record a --output r.record --duration 0.1 --payload --json "${CTL[@]}"
says '"devices":1'
chmod 0666 r.record
accepts record a --output r.record --duration 0.1 "${CTL[@]}"
count=$((count + 1))
[ "$(stat -c %a r.record)" = 600 ] || complain "r.record is not private"
refuses 1 "device c: does not exist" record c --output r.record --duration 0.1 "${CTL[@]}"
refuses 1 "none/r.record" record a --output none/r.record --duration 0.1 "${CTL[@]}"
mkfifo fifo
refuses 1 "fifo" record a --output fifo --duration 0.1 "${CTL[@]}"
stops TERM

printf '[[device]]\nname = "a"\nplugin = "%s"\nsocket = "a.sock"\nrecord = "none/r.record"\n' "$PLUGIN" >bad.toml
refuses 1 "none/r.record" run bad.toml

write good.record op '{}' $ECHO $ECHO
accepts replay good.record --plugin "$PLUGIN" --strict
says "good.record: 2 requests, 2 answers as recorded, 0 of another length, 0 with other bytes, 0 missing"
accepts replay good.record --plugin "$PLUGIN" --here --packed --json
says '"answered":2'
# An answer of the same length with other bytes, and a file that ends within it.
python3 - <<'PY'
import struct
data = bytearray(open("good.record", "rb").read())
data[-1] = 0x7f
open("other.record", "wb").write(data)
data = data[:-3]
open("cut.record", "wb").write(data)
at = 12 + struct.unpack_from("<I", data, 8)[0]
data[at:at + 4] = b"\xf0\xff\xff\xff"
open("large.record", "wb").write(data)
PY
accepts replay other.record --plugin "$PLUGIN"
says "  queue 0, request 2: byte 7 of 8 is 0x00, not 0x7f"
refuses 1 "other.record: 1 answers differ" replay other.record --plugin "$PLUGIN" --strict
accepts replay cut.record --plugin "$PLUGIN"
says "the record ends within a request"
refuses 1 "virtbay: large.record: at byte" replay large.record --plugin "$PLUGIN"
# A crash; with sanitizers it takes the process with it, and they have their own words for it.
starts serve plugin "$BUILD/plugins/test_reload_1.so" --socket-path=a.sock --record=crash.record --contain
"$HERE/send_ops.py" a.sock $ECHO $ECHO $CRASH &
PIDS+=($!)
for i in $(seq 200); do
  grep -q "crashed: SIG" log || ! kill -0 $SERVICE 2>/dev/null && break
  sleep 0.1
done
kill $SERVICE 2>/dev/null
wait $SERVICE 2>/dev/null
for i in 1 2 3; do
  grep -q "has no effect" log && break
  refuses 1 "crash.record: ended by SIG" replay crash.record --plugin "$BUILD/plugins/test_reload_1.so"
  refuses 1 "in: request 3 of queue 0" replay crash.record --plugin "$BUILD/plugins/test_reload_1.so"
done
write fail.record op '{}' $ECHO $FAIL $ECHO
refuses 1 "device fails" replay fail.record --plugin "$PLUGIN"
write hold.record op '{}' $HOLD
refuses 1 "hold.record: 1 requests were not answered" replay hold.record --plugin "$PLUGIN" --patience 1
write queue.record op '{}' $ECHO $ECHO:7
refuses 1 "queue.record: 1 requests are of queues that the device does not have" replay queue.record --plugin "$PLUGIN"
write options.record op '{"shared-dir": "/srv"}' $ECHO
refuses 1 "was recorded with shared-dir=/srv" replay options.record --plugin "$PLUGIN"
head -c 1000 /dev/zero >garbage
refuses 1 "garbage: at byte 0" replay garbage --plugin "$PLUGIN"
refuses 1 "No such file" replay none.record --plugin "$PLUGIN"
refuses 1 "fifo" replay fifo --plugin "$PLUGIN"
refuses 1 "none.so" replay good.record --plugin ./none.so
# The recorded name is one of a plugin that is nowhere to be found.
refuses 1 "(--plugin names its file)" replay good.record
# A file of that name here may be anybody's, as the record.
name=$(sed -n 's/.*plugin \(.*\): no .*/\1/p' err)
KEPT="$KEPT|$name"
cp "$PLUGIN" "$name"
refuses 1 "(--plugin names its file)" replay good.record
rm "$name"
refuses 1 "no none.so in" replay good.record --plugin none
count=$((count + 1))
grep -qF -- "--plugin" err && complain "a hint to do what was done"
refuses 2 "--patience" replay good.record --patience 0
echo "$count checks, $failed failed"
[ $failed = 0 ]
