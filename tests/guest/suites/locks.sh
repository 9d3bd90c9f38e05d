# Locks are the host's: between two mounts of one directory, and with processes of the host.
LIMIT=300
MEMORY=512M
NEEDS=flock
suite_shares() {
  share a "$WORK/dir"
  share b "$WORK/dir"
  # The smallest arena; the ring's size is the guest's choice (256).
  share small "$WORK/small" .arena-size '"2M"'
}
suite_prepare() { (cd "$WORK/dir" && touch posix ofd flock host-flock host-posix waited range); }
# Whether as many requests wait on the share as the guest has written down.
host_sees_the_crowd_wait() {
  local device expected
  read -r device expected <"$WORK/dir/waiting" || return 1
  "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" stats --prometheus "$device" |
    awk -v want="$expected" '/^virtbay_queue_parked[{]/ { n += $2 } END { exit n != want }'
}
# A process of the host that holds a lock until the suite ends.
host_takes_locks() {
  local out
  mkfifo "$WORK/held1" "$WORK/held2"
  setsid "$BUILD/bin/fsprobe" lock "$WORK/dir/host-flock" flock wr 0 0 -- \
    sh -c "echo held >$WORK/held1; exec sleep 100" &
  HOLDER1=$!
  setsid "$BUILD/bin/fsprobe" lock "$WORK/dir/host-posix" posix wr 0 10 -- \
    sh -c "echo held >$WORK/held2; exec sleep 100" &
  HOLDER2=$!
  read -r out <"$WORK/held1" && read -r out <"$WORK/held2"
}
host_drops_locks() { kill -- -$HOLDER1 -$HOLDER2; wait $HOLDER1 $HOLDER2; true; }
host_finds_flock_held() { ! flock -n "$WORK/dir/flock" true; }
host_finds_posix_held() { [ "$("$BUILD/bin/fsprobe" getlk "$WORK/dir/posix" wr 0 5)" = wr ]; }
host_finds_flock_free() { flock -n "$WORK/dir/flock" true; }
guest() {
  # held FILE KIND COMMAND...: runs the command while mount a holds the lock.
  held() {
    local file=$1 kind=$2
    shift 2
    $FSPROBE lock $M/a/$file $kind wr 0 10 -- "$@"
  }
  export -f host not same
  export M JOB FSPROBE
  for kind in posix ofd flock; do
    check "$kind: free from the other mount" $FSPROBE lock $M/b/$kind $kind wr 0 10
    check "$kind: refused to the other mount" held $kind $kind \
      bash -c "not $FSPROBE lock $M/b/$kind $kind wr 0 10"
    check "$kind: refused on the same mount" held $kind $kind \
      bash -c "not $FSPROBE lock $M/a/$kind $kind rd 0 10"
    check "$kind: free again" $FSPROBE lock $M/b/$kind $kind wr 0 10
  done
  check "posix: another range is free" held range posix $FSPROBE lock $M/b/range posix wr 10 10
  check "posix: a range in common is not" held range posix \
    bash -c "not $FSPROBE lock $M/b/range posix wr 9 10"
  check "posix: shared locks share" $FSPROBE lock $M/a/range posix rd 0 10 -- \
    $FSPROBE lock $M/b/range posix rd 0 10
  check "posix: F_GETLK sees the other mount's lock" held posix posix \
    bash -c "same \"\$($FSPROBE getlk $M/b/posix wr 0 10)\" wr"
  check "ofd: a lock goes with its last descriptor" $FSPROBE ofd-close $M/a/closed
  waits() {
    # The second one may only begin once the first has left its mark.
    $FSPROBE lock $M/a/waited $1 wr 0 10 -- \
      bash -c "$FSPROBE lock $M/b/waited $1 wr 0 10 wait -- sh -c 'test -e $M/a/mark' >/tmp/w 2>&1 &
        echo \$! >/tmp/waiter; stat $M/b >/dev/null; ls $M/b/ >/dev/null; sleep 1; touch $M/a/mark" &&
      for i in $(seq 100); do kill -0 $(cat /tmp/waiter) 2>/dev/null || return 0; sleep 0.1; done
    return 1
  }
  check "posix: a blocked lock is granted later, and holds nothing up" waits posix
  rm -f $M/a/mark
  check "flock: a blocked lock is granted later" waits flock
  # Not here: interrupting a blocked lock. Linux's virtiofs never sends FUSE_INTERRUPT, so such a
  # process cannot even be killed; the in-process guest tests it.
  mkdir $M/a/circles
  check "posix: two processes in a deadlock" $FSPROBE deadlock $M/a/circles 2
  check "posix: three processes in a deadlock" $FSPROBE deadlock $M/a/circles 3
  check "posix: ten processes in a deadlock" $FSPROBE deadlock $M/a/circles 10
  # Many wait for a lock: the holder, other files and other shares get through, and everybody gets
  # the lock in the end or is told that there is no room to wait in.
  crowd() {
    local dir=$1 tag=$2 i refused=0 got=0
    rm -rf /tmp/crowd && mkdir /tmp/crowd
    $FSPROBE lock $dir/crowd posix wr 0 10 -- \
      sh -c 'touch /tmp/crowd/held; while [ ! -e /tmp/crowd/let-go ]; do sleep 0.1; done' &
    while [ ! -e /tmp/crowd/held ]; do sleep 0.1; done
    for i in $(seq 300); do
      sh -c "$FSPROBE lock $dir/crowd posix wr 0 10 wait >/tmp/crowd/$i.out 2>&1; echo \$? >/tmp/crowd/$i" &
    done
    for i in $(seq 600); do
      echo $tag $((300 - $(ls /tmp/crowd | grep -c '^[0-9]*$'))) >$M/b/waiting
      host sees_the_crowd_wait && break
      sleep 0.1
    done
    [ "$i" != 600 ] || { echo "not all of them wait"; cat $M/b/waiting; touch /tmp/crowd/let-go; return 1; }
    echo text >$dir/other && [ "$(cat $dir/other)" = text ] && ls -l $dir >/dev/null &&
      $FSPROBE lock $dir/other posix wr 0 10 && $FSPROBE lock $dir/crowd posix wr 20 10 &&
      ls $M/a >/dev/null || { echo "others are held up"; touch /tmp/crowd/let-go; return 1; }
    [ -z "$(cat /tmp/crowd/*.out | grep -v 'No locks available')" ] || { cat /tmp/crowd/*.out | sort | uniq -c; return 1; }
    touch /tmp/crowd/let-go
    wait
    for i in $(seq 300); do
      case $(cat /tmp/crowd/$i) in
        0) got=$((got + 1)) ;;
        3) grep -q "No locks available" /tmp/crowd/$i.out && refused=$((refused + 1)) ;;
      esac
    done
    echo "$got had the lock, $refused had no place to wait"
    echo "    $tag: $got had the lock, $refused had no place to wait" >/dev/console
    [ $got -gt 0 ] && [ $((got + refused)) = 300 ]
  }
  check "300 processes wait for a lock" crowd $M/a a
  check "and again" crowd $M/a a
  check "300 processes wait on a small arena" crowd $M/small small
  check "the host takes locks" host takes_locks
  check "flock of the host refuses the guest" not $FSPROBE lock $M/a/host-flock flock wr 0 0
  check "record lock of the host refuses the guest" not $FSPROBE lock $M/a/host-posix posix wr 5 1
  check "the host's other range is free" $FSPROBE lock $M/a/host-posix posix wr 10 1
  check "the host drops them" host drops_locks
  check "flock is free then" $FSPROBE lock $M/a/host-flock flock wr 0 0
  check "flock of the guest refuses the host" held flock flock bash -c "host finds_flock_held"
  check "record lock of the guest shows on the host" held posix posix bash -c "host finds_posix_held"
  check "flock is free on the host" host finds_flock_free
}
