# What the tests of the command line share. Sourced with BUILD set, the build's directory; leaves the
# script in a scratch directory of its own, with an empty directory `share` in it.
VIRTBAY=$BUILD/bin/virtbay
WORK=$(mktemp -d)
PIDS=()
KEPT='share|out|err|.*\.toml|.*\.so|used\.sock|plain|hidden' # what a refused command may leave there
failed=0
count=0
cleanup() {
  local pid
  for pid in "${PIDS[@]}"; do kill -KILL "$pid" 2>/dev/null; done
  rm -rf "$WORK"
}
trap cleanup EXIT
cd "$WORK" || exit 1
mkdir share
unset LISTEN_PID LISTEN_FDS LISTEN_FDNAMES NOTIFY_SOCKET XDG_RUNTIME_DIR VIRTBAY_CONTROL_SOCKET

complain() {
  failed=$((failed + 1))
  echo "FAIL $1"
  [ -e err ] && sed 's/^/    /' err
}

# refuses STATUS TEXT ARGUMENT...: ends with STATUS, says one line with TEXT on stderr.
refuses() {
  local status=$1 text=$2 got
  shift 2
  count=$((count + 1))
  timeout 20 "$VIRTBAY" "$@" >out 2>err </dev/null
  got=$?
  if [ $got != "$status" ]; then
    complain "virtbay $*: exit status $got, not $status"
  elif [ "$(grep -c '^virtbay: ' err)" != 1 ] || [ "$(wc -l <err)" != 1 ]; then
    complain "virtbay $*: not one line"
  elif ! grep -qF -- "$text" err; then
    complain "virtbay $*: does not say '$text'"
  elif [ -n "$(ls -A | grep -vxE "$KEPT")" ]; then
    complain "virtbay $*: left behind $(ls -A)"
  fi
}

accepts() {
  count=$((count + 1))
  timeout 20 "$VIRTBAY" "$@" >out 2>err </dev/null || complain "virtbay $*: exit status $?"
}

says() {
  count=$((count + 1))
  grep -qF -- "$1" out || { complain "no '$1' in the output"; sed 's/^/    /' out; }
}

# starts ARGUMENT...: a service in the background; returns when it serves.
starts() {
  mkfifo ready
  exec {hold}<>ready
  "$VIRTBAY" "$@" --ready-fd=9 9>ready {hold}<&- </dev/null >log 2>&1 &
  SERVICE=$!
  PIDS+=("$SERVICE")
  count=$((count + 1))
  local i
  for i in $(seq 20); do
    if read -r -t 1 -u "$hold"; then break; fi
    kill -0 $SERVICE 2>/dev/null || break
  done
  exec {hold}<&-
  rm -f ready
  kill -0 $SERVICE 2>/dev/null || { complain "virtbay $* did not start"; cat log; }
}

stops() {
  local status
  count=$((count + 1))
  kill "-$1" "$SERVICE"
  wait "$SERVICE"
  status=$?
  [ $status = 0 ] || { complain "SIG$1: exit status $status"; cat log; }
}
