# What every suite's guest part begins with. Runs inside the guest, as root, under bash; the shares
# are at $M/TAG, the suite's files and fsprobe at $JOB.
M=/run/mnt
JOB=/run/job
FSPROBE=$JOB/fsprobe
LIMIT=120
# A file, not the environment: git does not hand its own variables on to what clone starts. The
# files belong to whoever runs virtbay, not to the guest's root.
printf '[safe]\n\tdirectory = *\n[user]\n\tname = guest\n\temail = guest@example.org\n' >~/.gitconfig

# check NAME COMMAND...: one result; COMMAND may be a function. It must succeed within LIMIT s.
check() {
  local name=$1 status pid watcher
  shift
  ( "$@" ) >/tmp/check.log 2>&1 </dev/null &
  pid=$!
  # It leaves nothing behind that would keep a directory or a file of a share in use.
  ( trap 'kill $! 2>/dev/null; exit' TERM
    sleep "$LIMIT" &
    wait $!
    echo "time limit of $LIMIT s" >>/tmp/check.log
    kill -KILL $pid ) &
  watcher=$!
  wait $pid 2>/dev/null
  status=$?
  kill $watcher 2>/dev/null
  wait $watcher 2>/dev/null
  if [ $status = 0 ]; then
    echo "@@PASS $name"
  else
    echo "@@FAIL $name (status $status)"
    tail -n 12 /tmp/check.log | tr -d '\r' | sed 's/^/    /'
  fi
  return $status
}

skip() { echo "@@SKIP $1"; }

# not COMMAND...: it must fail, and not by a signal.
not() {
  "$@"
  local status=$?
  [ $status != 0 ] && [ $status -lt 126 ]
}

# host NAME: runs the suite's host_NAME on the host and returns its verdict.
host() {
  local answer
  echo "@@HOST $1" >/dev/console
  read -r answer </dev/console
  [ "$answer" = ok ]
}

same() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; return 1; }; }
