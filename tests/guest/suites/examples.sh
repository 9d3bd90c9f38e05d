# The example devices, each bound by the kernel's own driver: random numbers, two consoles, a disk
# under ext4, a directory over 9P with both message sizes; and what virtbay plugin new begins.
LIMIT=150
NEEDS="fio mkfs.ext4 e2fsck blkdiscard fstrim"

# device NAME PLUGIN VIRTIO-ID OPTIONS: TOML of [device.options].
device() {
  printf '\n[[device]]\nname = "%s"\nplugin = "%s"\nsocket = "%s"\n[device.options]\n%s\n' \
    "$1" "$2" "$WORK/$1.sock" "$4" >>"$WORK/virtbay.toml"
  GUEST_DEVICES+=("$WORK/$1.sock:$3")
}
suite_shares() {
  mkdir -p "$WORK/shared/sub"
  truncate -s 96M "$WORK/disk"
  device rng virtio-rng 4 ''
  device echo virtio-console 3 ''
  device pty virtio-console 3 "backend = \"pty\"
link = \"$WORK/terminal\""
  device disk virtio-blk 2 "file = \"$WORK/disk\"
serial = \"example-disk\"
queues = 2"
  device plan9 virtio-9p 9 "shared-dir = \"$WORK/shared\"
tag = \"shared\""
  device own-rng "$WORK/own-rng/build/plugins/own-rng.so" 4 'text = "of my own "'
  device own-fs "$WORK/own-fs/build/plugins/own-fs.so" 26 'text = "written by an author"'
}
# Two plugins as somebody outside this tree makes them.
author() {
  cmake --install "$BUILD" --component sdk --prefix "$WORK/prefix" || return
  local pair name
  for pair in own-rng:generic own-fs:fs; do
    name=${pair%:*}
    "$BUILD/bin/virtbay" plugin new "$name" --type "${pair#*:}" --dir "$WORK/$name" &&
      cmake -S "$WORK/$name" -B "$WORK/$name/build" -DCMAKE_PREFIX_PATH="$WORK/prefix" \
        -DBUILD_TESTING=OFF && cmake --build "$WORK/$name/build" || return
  done
}
suite_prepare() {
  head -c 12345678 /dev/urandom >"$WORK/shared/from-host"
  (cd "$WORK/shared" && sha256sum from-host >"$WORK/job/sums")
  cp "$UML_MODULES"/*.ko "$WORK/job/"
  author >"$WORK/author.log" 2>&1
  verdict $? "plugin new begins a device and a file system, which are built"
}
suite_run() {
  local missing
  missing=$(uml_missing)
  [ -z "$missing" ] || { skip "$missing"; return; }
  amd64_with flex bison bc xz || return
  if ! UML_MODULES=$("$HERE/uml_modules.sh" 2>"$WORK/modules.log"); then
    fail "the guest's modules are built"
    sed 's/^/    /' "$WORK/modules.log"
    return
  fi
  uml_suite
}
# The other end of the guest's second console.
host_terminal() {
  local line terminal
  exec {terminal}<>"$(readlink "$WORK/terminal")" &&
    read -r -t 30 line <&"$terminal" && [ "$line" = "who is there" ] &&
    echo "the host" >&"$terminal"
  local status=$?
  exec {terminal}>&-
  return $status
}
host_resizes() {
  "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" device echo resize 132x40
}
host_disk_is_large() { [ "$(stat -c %b "$WORK/disk")" -gt 100000 ]; }
host_disk_is_small() { [ "$(stat -c %b "$WORK/disk")" -lt 60000 ]; }
host_has_the_copies() {
  cmp "$WORK/shared/from-host" "$WORK/shared/copy-65536" &&
    cmp "$WORK/shared/from-host" "$WORK/shared/copy-262144" &&
    [ "$(cat "$WORK/shared/sub/renamed")" = "some text" ] &&
    [ "$(readlink "$WORK/shared/sub/link")" = renamed ] && [ ! -e "$WORK/shared/sub/gone" ] &&
    [ "$(stat -c %a "$WORK/shared/sub/renamed")" = 640 ]
}
host_shows_them() {
  local name
  for name in rng echo pty disk plan9 own-rng own-fs; do
    "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" --json inspect $name |
      grep -q '"state":"running"' || return
  done
}
guest() {
  local kernel module msize
  kernel=$(ls -d /usr/lib/uml/modules/*/kernel | sort -V | tail -n 1)
  for module in "$kernel"/drivers/char/virtio_console.ko "$kernel"/drivers/block/virtio_blk.ko \
    "$kernel"/fs/netfs/netfs.ko $JOB/virtio-rng.ko $JOB/9pnet.ko $JOB/9pnet_virtio.ko $JOB/9p.ko; do
    busybox insmod "$module" || echo "@@FAIL insmod $module"
  done
  mkdir -p /run/mnt/own
  check "a file system of one's own" sh -c "mount -t virtiofs own-fs /run/mnt/own && [ \"\$(cat /run/mnt/own/hello)\" = 'written by an author' ] && [ \"\$(ls /run/mnt/own)\" = hello ]"
  check "the kernel's drivers run them all" host shows_them
  check "a device of one's own" sh -c "echo virtio_rng.1 >/sys/class/misc/hw_random/rng_current && head -c 4000 /dev/hwrng | grep -q 'of my own of my own'"
  echo virtio_rng.0 >/sys/class/misc/hw_random/rng_current

  random() { head -c 100000 /dev/hwrng | sha256sum; }
  check "the random numbers come from the device" \
    grep -q virtio_rng /sys/class/misc/hw_random/rng_available
  check "and differ" sh -c "! [ \"$(random)\" = \"$(random)\" ] && [ \$(head -c 100000 /dev/hwrng | wc -c) = 100000 ]"

  echoes() {
    local line console
    # The settings last as long as it is open.
    exec {console}<>/dev/hvc0 && stty raw -echo <&"$console" || return
    for i in $(seq 200); do
      echo "line $i" >&"$console"
      read -r -t 20 line <&"$console" && same "$line" "line $i" || return
    done
    # The driver asks for the size when it is told of a change.
    host resizes || return
    for i in $(seq 50); do
      [ "$(stty size <&"$console")" = "40 132" ] && return
      sleep 0.2
    done
    same "$(stty size <&"$console")" "40 132"
  }
  check "the console says what it is told" echoes
  talks() {
    local line console
    exec {console}<>/dev/hvc1 && stty raw -echo <&"$console" || return
    echo "who is there" >&"$console"
    host terminal || { echo "the host heard nothing"; return 1; }
    read -r -t 20 line <&"$console" && same "$line" "the host"
  }
  check "the host's terminal" talks

  check "the disk says who it is" same "$(cat /sys/block/vda/serial)" example-disk
  check "and what it is" same "$(cd /sys/block/vda && cat size queue/physical_block_size queue/discard_granularity mq/1/cpu_list 2>/dev/null | head -n 3 | xargs)" "196608 4096 4096"
  raw() {
    dd if=/dev/urandom of=/tmp/data bs=1M count=20 && dd if=/tmp/data of=/dev/vda bs=1M oflag=direct &&
      dd if=/tmp/data of=/dev/vda bs=1M seek=40 conv=fsync && echo 3 >/proc/sys/vm/drop_caches &&
      cmp -n 20971520 /tmp/data /dev/vda && cmp -n 20971520 /tmp/data /dev/vda 0 41943040
  }
  check "raw reads and writes" raw
  zeroed() { [ "$(dd if=/dev/vda bs=1M skip="$1" count="$2" iflag=direct 2>/dev/null | tr -d '\0' | wc -c)" = 0 ]; }
  check "discarded sectors are zero" sh -c "blkdiscard -o 0 -l 10M /dev/vda"
  check "and read so" zeroed 0 10
  check "zeroes are written" blkdiscard -z -o 40M -l 4M /dev/vda
  check "where they should be" zeroed 40 4
  check "not beside it" sh -c "cmp -n 6291456 /tmp/data /dev/vda 14680064 14680064 && cmp -n 6291456 /tmp/data /dev/vda 14680064 56623104"
  check "mkfs" mkfs.ext4 -q /dev/vda
  mkdir -p /run/mnt/disk
  check "mount" mount -t ext4 /dev/vda /run/mnt/disk
  job() {
    fio --name=job --directory="$1" --size="$2" --rw=randwrite --verify=crc32c --verify_fatal=1 \
      --verify_state_save=0 --fallocate=none --end_fsync=1 --output-format=terse --do_verify=1 "${@:3}"
  }
  check "fio on ext4" job /run/mnt/disk 24m --bsrange=4k-128k --ioengine=libaio --direct=1 --iodepth=16 --numjobs=2
  check "the host's file has grown" host disk_is_large
  check "trim" sh -c "rm -f /run/mnt/disk/job* && sync && fstrim /run/mnt/disk"
  check "the host's file has shrunk" host disk_is_small
  check "unmount" umount /run/mnt/disk
  check "the file system is whole" e2fsck -fn /dev/vda

  mkdir -p /run/mnt/plan9
  for msize in 65536 262144; do
    check "mount -t 9p, msize $msize" mount -t 9p -o trans=virtio,version=9p2000.L,msize=$msize,cache=none shared /run/mnt/plan9
    check "that is the session's" grep -q "shared /run/mnt/plan9 9p .*msize=$msize" /proc/mounts
    check "a file of the host" sh -c "cd /run/mnt/plan9 && sha256sum -c $JOB/sums"
    check "copied" sh -c "cp /run/mnt/plan9/from-host /run/mnt/plan9/copy-$msize && cmp /run/mnt/plan9/from-host /run/mnt/plan9/copy-$msize"
    check "fio on 9P" job /run/mnt/plan9 4m --bsrange=512-300k --bs_unaligned=1 --ioengine=psync
    names() {
      cd /run/mnt/plan9/sub && rm -rf * && echo "some text" >first && chmod 640 first && mv first renamed &&
        ln -s renamed link && same "$(cat link)" "some text" && ln renamed gone && rm gone &&
        mkdir many && for i in $(seq 300); do : >many/$i; done && same "$(ls many | wc -l)" 300 &&
        rm -r many && not test -e many && not cat ../../../../etc/hostname2 && touch -d @1000000 renamed &&
        same "$(stat -c %Y renamed)" 1000000 && df . >/dev/null && mkfifo pipe && not mknod disk b 8 0
    }
    check "names" names
    locks() {
      exec 7<>/run/mnt/plan9/sub/renamed && flock -x 7 && ! flock -n -x /run/mnt/plan9/sub/renamed true
    }
    check "locks" locks
    check "unmount of 9P" sh -c "rm -f /run/mnt/plan9/job*; umount /run/mnt/plan9"
  done
  check "the host has what the guest wrote" host has_the_copies
}
