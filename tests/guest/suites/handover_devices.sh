# The process with the example devices is replaced by another one again and again while a guest works on all of them:
# a disk and 9P have what was written, a console says what it is told, in that order, a terminal of the host stays the
# same, random numbers come, and what is left in the end is one process of the size of the second.
LIMIT=150
NEEDS="fio pgrep"
HANDOVERS=${VIRTBAY_HANDOVERS:-10}
HOST_KEYS="state-dir = \"$WORK/state\""
DEVICES=(rng echo pty disk plan9)

# device NAME PLUGIN VIRTIO-ID OPTIONS: TOML of [device.options].
device() {
  printf '\n[[device]]\nname = "%s"\nplugin = "%s"\nsocket = "%s"\n[device.options]\n%s\n' \
    "$1" "$2" "$WORK/$1.sock" "$4" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/$1.sock:$3")
}
suite_shares() {
  mkdir -p "$WORK/shared"
  truncate -s 32M "$WORK/disk"
  device rng virtio-rng 4 ''
  device echo virtio-console 3 ''
  device pty virtio-console 3 "backend = \"pty\"
link = \"$WORK/terminal\""
  device disk virtio-blk 2 "file = \"$WORK/disk\"
queues = 2"
  device plan9 virtio-9p 9 "shared-dir = \"$WORK/shared\"
tag = \"shared\""
}
suite_prepare() { [ -z "$UML_MODULES" ] || cp "$UML_MODULES"/*.ko "$WORK/job/"; }
suite_run() {
  local missing
  missing=$(uml_missing)
  [ -z "$missing" ] || { skip "$missing"; return; }
  # Disk and consoles need none of these, and examples fails where they cannot be built. The guest then has no driver
  # for the other two devices, which are handed over all the same.
  UML_MODULES=$("$HERE/uml_modules.sh" 2>"$WORK/modules.log") ||
    skip "random numbers and 9P: $(tail -n 1 "$WORK/modules.log")"
  uml_suite
  service_left
  verdict $? "neither a process nor a link is left"
}
# The processes that serve the suite's file, whoever started them.
serving() { pgrep -f "^$BUILD/bin/virtbay run $WORK/virtbay.toml "; }
service_left() { ! serving && [ ! -L "$WORK/terminal" ]; }
taken_over() { grep -c "taken over: " "$WORK/virtbay.log"; }
# Images, threads, descriptors, front-ends' sockets. Without the threads that only come with work: a queue's helper for
# long reads (NAME+), and those of the kernel's for io_uring.
process_size() {
  local images threads fds sockets
  images=$(grep -c "virtbay-plugin-" "/proc/$VIRTBAY_PID/maps")
  cat "/proc/$VIRTBAY_PID/task/"*/comm | grep -v -e '+$' -e '^iou-' >"$WORK/threads"
  threads=$(wc -l <"$WORK/threads")
  ls -l "/proc/$VIRTBAY_PID/fd" >"$WORK/fds"
  fds=$(grep -c -e '-> ' "$WORK/fds")
  sockets=$(ls "$WORK"/*.sock | wc -l)
  echo "$images $threads $fds $sockets"
}
replace() {
  local old=$VIRTBAY_PID before status
  before=$(taken_over)
  if ! service_start "$WORK" "$WORK/virtbay.toml"; then
    VIRTBAY_PID=$old
    return 1
  fi
  # Not waited for without a limit, and killed here: run.sh knows of the new one only.
  for _ in $(seq 100); do
    [ -e "/proc/$old" ] || break
    sleep 0.1
  done
  if [ -e "/proc/$old" ]; then
    echo "the process before has not ended"
    kill -KILL -- "-$old"
  fi
  wait "$old"
  status=$?
  [ "$status" = 0 ] || { echo "the process before ended with $status"; return 1; }
  [ "$(taken_over)" = $((before + ${#DEVICES[@]})) ] || { echo "not all devices were taken over"; return 1; }
  [ "$(serving)" = "$VIRTBAY_PID" ] || { echo "there are others: $(serving)"; return 1; }
}
host_once() { replace && process_size >"$WORK/before"; }
host_handovers() {
  local i
  for i in $(seq "$HANDOVERS"); do
    replace || return 1
    # For the guest, which is slow, to get on with its work.
    sleep 0.7
  done
}
# A descriptor may go a moment after the last request that it was for.
host_same() {
  local now
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    now=$(process_size)
    [ "$now" != "$(cat "$WORK/before")" ] || break
    sleep 1
  done
  echo "images, threads, descriptors, sockets before: $(cat "$WORK/before"), after: $now"
  sort "$WORK/threads" "$WORK/fds"
  [ "$now" = "$(cat "$WORK/before")" ]
}
# The other end of the guest's second console, by the terminal that was there first.
host_terminal() {
  local line terminal status
  [ -e "$WORK/terminal.first" ] || readlink "$WORK/terminal" >"$WORK/terminal.first"
  [ "$(readlink "$WORK/terminal")" = "$(cat "$WORK/terminal.first")" ] || return 1
  exec {terminal}<>"$(cat "$WORK/terminal.first")" && read -r -t 30 line <&"$terminal" &&
    [ "$line" = "who is there" ] && echo "the host" >&"$terminal"
  status=$?
  exec {terminal}>&-
  return $status
}
host_shows_them() {
  local name
  for name in "${DEVICES[@]}"; do
    "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json inspect "$name" |
      grep -q '"state":"running"' && continue
    # The guest has no driver for them.
    case $name in
      rng | plan9) [ -z "$UML_MODULES" ] || return 1 ;;
      *) return 1 ;;
    esac
  done
}
# The guest has said on its console what it reads.
host_has_the_disk() { grep -aq "^the disk reads $(sha256sum <"$WORK/disk")" "$WORK/console.log"; }
host_has_the_files() { (cd "$WORK/shared" && grep -q names/ sums && sha256sum --quiet -c sums); }
guest() {
  local kernel module modules works each
  kernel=$(ls -d /usr/lib/uml/modules/*/kernel | sort -V | tail -n 1)
  modules="$kernel/drivers/char/virtio_console.ko $kernel/drivers/block/virtio_blk.ko"
  works="disk echoes"
  if [ -e $JOB/9p.ko ]; then
    modules+=" $kernel/fs/netfs/netfs.ko $JOB/virtio-rng.ko $JOB/9pnet.ko $JOB/9pnet_virtio.ko $JOB/9p.ko"
    works+=" random plan9 names"
  fi
  for module in $modules; do
    busybox insmod "$module" || echo "@@FAIL insmod $module"
  done
  talks() {
    local line console
    # The settings last as long as it is open.
    exec {console}<>/dev/hvc1 && stty raw -echo <&"$console" || return
    echo "who is there" >&"$console"
    host terminal || { echo "the host heard nothing"; return 1; }
    read -r -t 20 line <&"$console" && same "$line" "the host"
  }
  check "the host's terminal" talks
  check "a handover while nobody works, and the size of the process" host once
  # Mounted afterwards, and no longer in the end: the process has a descriptor for each file that the guest knows.
  case $works in *plan9*)
    echo virtio_rng.0 >/sys/class/misc/hw_random/rng_current
    check "the random numbers come from the device" grep -q virtio_rng /sys/class/misc/hw_random/rng_current
    mkdir -p $M/plan9
    check "mount -t 9p" mount -t 9p -o trans=virtio,version=9p2000.L,msize=65536,cache=none shared $M/plan9
    exec 9<>$M/plan9/kept && echo first >&9 ;;
  esac

  # Each of these works on until there is a file, and says how much it has done.
  verified() {
    local log=/tmp/$1.fio
    shift
    # Other data each time: what was there before must not pass for what was written. More than once each time, as it
    # is the work that is to be replaced under, and fio takes the guest as long to begin.
    fio --name=job --rw=randwrite --verify=crc32c --verify_fatal=1 --verify_state_save=0 --do_verify=1 --loops=8 \
      --randrepeat=0 --allrandrepeat=0 --randseed=$RANDOM$RANDOM --fallocate=none "$@" >"$log" 2>&1 && return
    grep -e "error" -e "verify" "$log"
    return 1
  }
  disk() {
    until [ -e /tmp/stop ]; do
      verified disk --filename=/dev/vda --size=24m --bsrange=4k-128k --direct=1 --ioengine=libaio --iodepth=16 || return
      echo "round" >>/tmp/disk.rounds
    done
  }
  plan9() {
    until [ -e /tmp/stop ]; do
      verified plan9 --directory=$M/plan9 --size=2m --bsrange=512-100k --bs_unaligned=1 --ioengine=psync || return
      echo "round" >>/tmp/plan9.rounds
    done
  }
  names() {
    local n=0
    mkdir $M/plan9/names && cd $M/plan9/names || return
    until [ -e /tmp/stop ]; do
      n=$((n + 1))
      echo "text $n" >new && mv new "f$((n % 20))" && same "$(cat "f$((n % 20))")" "text $n" && [ ! -e new ] &&
        mkdir d && same "$(ls d | wc -l)" 0 && rmdir d || { echo "names, round $n"; return 1; }
      echo "round" >>/tmp/names.rounds
    done
  }
  # Several lines are on their way at once, though not more than the line discipline has room for.
  echoes() {
    local console line n=0 i
    exec {console}<>/dev/hvc0 && stty raw -echo <&"$console" || return
    until [ -e /tmp/stop ]; do
      for i in $(seq 20); do echo "line $((n + i)) of the console" >&"$console" || return; done
      for i in $(seq 20); do
        read -r -t 20 line <&"$console" || { echo "no answer to line $((n + i))"; return 1; }
        same "$line" "line $((n + i)) of the console" || return
      done
      n=$((n + 20))
      echo "round" >>/tmp/echoes.rounds
    done
    ! read -r -t 1 line <&"$console" || { echo "and then '$line'"; return 1; }
  }
  random() {
    local sum="" last
    until [ -e /tmp/stop ]; do
      last=$sum
      head -c 20000 /dev/hwrng >/tmp/random || return
      sum=$(sha256sum </tmp/random)
      same "$(stat -c %s /tmp/random)" 20000 && not same "$sum" "$last" >/dev/null || return
      echo "round" >>/tmp/random.rounds
    done
  }
  # Warnings count: of a request that failed a driver may say no more.
  dmesg -r | grep "^<[0-4]>" >/tmp/complaints
  for each in $works; do
    { "$each" >"/tmp/$each" 2>&1; echo $? >"/tmp/$each.status"; } &
  done
  begun() {
    for each in $works; do
      until [ -e "/tmp/$each.rounds" ]; do
        [ ! -e "/tmp/$each.status" ] || { echo "$each has ended"; cat "/tmp/$each"; return 1; }
        busybox usleep 100000
      done
    done
  }
  check "work on each of them" begun
  # What was done before is not counted.
  for each in $works; do : >"/tmp/$each.rounds"; done
  check "handovers while it works" host handovers
  touch /tmp/stop
  for each in $works; do
    ended() {
      while [ ! -e "/tmp/$each.status" ]; do busybox usleep 100000; done
      cat "/tmp/$each"
      [ "$(cat "/tmp/$each.status")" = 0 ] && [ -s "/tmp/$each.rounds" ]
    }
    check "$each noticed nothing" ended && echo "    $each: $(wc -l <"/tmp/$each.rounds") rounds"
  done
  silent() { dmesg -r | grep "^<[0-4]>" | diff /tmp/complaints -; }
  check "nor did the kernel" silent
  check "the host's terminal is the same" talks
  echo 3 >/proc/sys/vm/drop_caches
  echo "the disk reads $(dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | sha256sum)"
  check "the host's file has what the guest reads" host has_the_disk
  case $works in *plan9*)
    kept() { echo second >&9 && same "$(cat $M/plan9/kept | xargs)" "first second"; }
    check "a file that was open" kept
    exec 9>&-
    summed() { cd $M/plan9 && find . -type f | xargs sha256sum >/tmp/sums && cp /tmp/sums sums; }
    check "the files can be read" summed
    check "the host has the same" host has_the_files
    check "unmount of 9P" umount $M/plan9 ;;
  esac
  check "all of them run" host shows_them
  check "the process is no larger" host same
}
