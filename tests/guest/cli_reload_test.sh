#!/bin/bash
# `virtbay reload` and `--watch`: a process whose device gets a new build of its plugin, or refuses it.
#   cli_reload_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_reload_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
KEPT="$KEPT|log|a.sock|b.sock|control.sock"
FIRST=$BUILD/plugins/test_reload_1.so
SECOND=$BUILD/plugins/test_reload_2.so
CTL=(--control-socket=control.sock)

# eventually PATTERN COUNT: the log has it so often, within half a minute.
eventually() {
  count=$((count + 1))
  local i
  for i in $(seq 300); do
    [ "$(grep -c -- "$1" log)" -ge "$2" ] && return
    sleep 0.1
  done
  complain "the log does not say '$1' $2 times"
  cat log
}

cp "$FIRST" counting.so
cat >two.toml <<'TOML'
[host]
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

refuses 2 "name is required" reload
refuses 1 "nowhere.sock" reload a --control-socket=nowhere.sock

starts run two.toml
cp "$SECOND" new.so
accepts reload a --from new.so "${CTL[@]}"
says "a: generation 2, version 1.0 -> 2.0"
says "pause"
accepts ctl "${CTL[@]}" inspect a
says '"plugin_version": "2.0"'
says '"generation": 2'
accepts ctl "${CTL[@]}" inspect b
says '"plugin_version": "1.0"'
# All devices of a plugin; a state of the second build is none for the first one.
refuses 1 "0 of 2 devices were reloaded, then: device 'a': reload: a state of version 2" reload counting \
  "${CTL[@]}" --from counting.so
accepts reload counting --from new.so "${CTL[@]}" --json
says '"device":"b"'
says '"image_unloaded":true'
refuses 1 "there is no device 'c', nor one of a plugin of that name" reload c "${CTL[@]}"
refuses 1 "none.so" reload a --from none.so "${CTL[@]}"
head -c 5000 new.so >half.so
refuses 1 "half.so" reload a --from half.so "${CTL[@]}"
accepts ctl "${CTL[@]}" inspect a
says '"generation": 3'
stops TERM

# The linker writes in pieces, and then once more.
starts run two.toml --watch
head -c 5000 "$SECOND" >counting.so
tail -c +5001 "$SECOND" >>counting.so
eventually "generation 2: version 1.0 (.*) -> 2.0" 2
cp "$SECOND" other.so
mv other.so counting.so
eventually "generation 3: version 2.0 (.*) -> 2.0" 2
echo "no plugin" >counting.so
accepts ctl "${CTL[@]}" inspect a
says '"generation": 3'
stops TERM

# A link, whose target is in a directory that is removed and made again.
mkdir build
cp "$FIRST" build/counting.so
ln -sf build/counting.so counting.so
starts run two.toml --watch
cp "$SECOND" build/counting.so
eventually "generation 2: version 1.0 (.*) -> 2.0" 2
rm -r build
mkdir build
cp "$SECOND" build/counting.so
eventually "generation 3: version 2.0 (.*) -> 2.0" 2
rm -r build
eventually "watch: .*build.*tried again" 1
mkdir build
cp "$SECOND" build/counting.so
eventually "generation 4: version 2.0 (.*) -> 2.0" 2
# Another target.
cp "$SECOND" other.so
ln -sfn other.so counting.so
eventually "generation 5: version 2.0 (.*) -> 2.0" 2
cp "$SECOND" other.so
eventually "generation 6: version 2.0 (.*) -> 2.0" 2
stops TERM

# A build that never comes back holds up neither the other device nor the end.
sed 's/^socket = .*/&\nstop-deadline = "1s"/' two.toml >short.toml
ln -sfn "$FIRST" counting.so
starts run short.toml --contain
"$VIRTBAY" reload a --from "$BUILD/bad_plugins/init_hangs.so" "${CTL[@]}" >reload.out 2>&1 &
RELOAD=$!
PIDS+=("$RELOAD")
eventually "a: the plugin has been in init, a call of the control plane" 1
accepts ctl "${CTL[@]}" inspect b
kill -TERM "$SERVICE"
wait "$SERVICE"
status=$?
count=$((count + 1))
[ $status = 1 ] || { complain "held up by a plugin: exit status $status"; cat log; }
eventually "stopping: a change of the control plane: not ended" 1
wait "$RELOAD"

# Nor does one that hangs from the start. The control socket is there before the devices are made.
cp "$BUILD/bad_plugins/init_hangs.so" .
hangs() {
  rm -f control.sock
  cat >hangs.toml <<TOML
[host]
control-socket = "control.sock"
[[device]]
name = "a"
plugin = "./init_hangs.so"
socket = "a.sock"
stop-deadline = "$1"
TOML
  "$VIRTBAY" run hangs.toml >log 2>&1 </dev/null &
  SERVICE=$!
  PIDS+=("$SERVICE")
  local i
  for i in $(seq 300); do [ -S control.sock ] && break; sleep 0.1; done
  kill -TERM "$SERVICE"
}
ended() {
  wait "$SERVICE"
  status=$?
  count=$((count + 1))
  [ $status = "$1" ] || { complain "hung from the start: exit status $status, not $1"; cat log; }
}
hangs 100ms
ended 1
eventually "stopping on signal 15: device a: not made after 5.1s, held up by its plugin" 1
hangs 1h
for i in $(seq 300); do
  kill -TERM "$SERVICE" 2>/dev/null || break
  sleep 0.1
done
ended 143

# A build that crashes in its last call costs the next one nothing.
rm -f counting.so
cp "$FIRST" counting.so
sed 's/^socket = .*/&\noptions = { first = "crash_in_save" }/' two.toml >crashes.toml
starts run crashes.toml --watch --contain
if ! grep -q "has no effect" log; then # no build with sanitizers
  cp "$SECOND" other.so
  mv other.so counting.so
  eventually "watch: .*reload: save: the plugin crashed" 2
  eventually "version 1.0 (.*) -> 2.0" 2
fi
stops TERM
echo "$count checks, $failed failed"
[ $failed = 0 ]
