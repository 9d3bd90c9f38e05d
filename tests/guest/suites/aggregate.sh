# One device with many shares, as WSL uses it: bound where they are wanted, added and removed while
# the guest works.
LIMIT=240
CTL() { "$BUILD/bin/virtbay" ctl --control-socket "$WORK/control.sock" "$@"; }
suite_shares() {
  mkdir -p "$WORK"/dir/{src,out,ro,meta,late,many}
  {
    printf '\n[[device]]\nname = "all"\nplugin = "virtiofs"\nsocket = "%s"\n' "$WORK/all.sock"
    printf '[device.options]\ntag = "all"\nxattr = true\n'
    for name in src out; do
      printf '[[device.share]]\nname = "%s"\npath = "%s"\n' "$name" "$WORK/dir/$name"
    done
    printf '[[device.share]]\nname = "ro"\npath = "%s"\nreadonly = true\n' "$WORK/dir/ro"
    printf '[[device.share]]\nname = "meta"\npath = "%s"\nmetadata = true\n' "$WORK/dir/meta"
    printf '[[device.share]]\nname = "owned"\npath = "%s"\nuid = 1234\ngid = 567\numask = "027"\n' "$WORK/dir/src"
  } >>"$WORK/virtbay.toml"
  GUEST_SHARES+=("all=$WORK/all.sock")
}
suite_prepare() {
  local i
  head -c 4000000 /dev/urandom >"$WORK/dir/src/data"
  mkdir "$WORK/dir/src/sub"
  echo src >"$WORK/dir/src/file"
  chmod 666 "$WORK/dir/src/file"
  echo ro >"$WORK/dir/ro/file"
  echo late >"$WORK/dir/late/file"
  echo text >"$WORK/dir/late/ReadMe"
  ln -s /srv/data "$WORK/dir/late/link"
  for i in $(seq 1000 1199); do mkdir "$WORK/dir/many/$i" && echo "$i" >"$WORK/dir/many/$i/file" || return 1; done
}
host_adds_late() {
  [ "$(CTL share add all "$WORK/dir/late" --name late --option case=off --option symlinkroot=/mnt/host)" = late ] &&
    [ "$(CTL share add all "$WORK/dir/late" --option symlinkroot=/mnt/host/ --option case=off)" = late ]
}
host_removes_late() { CTL share remove all late && ! CTL share remove all late; }
host_adds_late_again() { echo again >"$WORK/dir/late/file" && CTL share add all "$WORK/dir/late" --name late; }
host_adds_many() {
  local i
  for i in $(seq 1000 1199); do
    CTL share add all "$WORK/dir/many/$i" --name "n$i" --readonly || return 1
  done
}
host_removes_half() {
  local i
  for i in $(seq 1000 2 1199); do CTL share remove all "n$i" || return 1; done
}
host_lists() { CTL share list all | grep -q "^owned .*gid=567;uid=1234;umask=027" && CTL --json share list all | grep -q '"name":"meta"'; }
host_sees_metadata() {
  [ "$(stat -c %f "$WORK/dir/meta/null")" = "$(stat -c %f "$WORK/dir/meta/file")" ] && [ -f "$WORK/dir/meta/null" ]
}
host_sees_moved() { [ "$(cat "$WORK/dir/out/moved")" = moved ] && [ ! -e "$WORK/dir/src/moved" ]; }
host_compares() { cmp "$WORK/dir/src/data" "$WORK/dir/out/copy"; }

guest() {
  cd $M/all || return
  check "the shares are the root's names" same "$(ls | tr '\n' ' ')" "meta out owned ro src "
  check "the root is read-only" sh -c "! touch new 2>/tmp/said && grep -qi read-only /tmp/said"
  check "a share cannot be removed by the guest" sh -c "! rmdir out 2>/tmp/said && grep -qi read-only /tmp/said"
  check "the host lists them" host lists
  check "from share to share" cp src/data out/copy
  check "the same bytes" host compares

  mkdir -p /tmp/bound /tmp/deep /tmp/readonly
  check "bind a share" mount --bind src /tmp/bound
  check "bind a directory of a share" mount --bind src/sub /tmp/deep
  check "bind read-only" sh -c "mount --bind out /tmp/readonly && mount -o remount,bind,ro /tmp/readonly"
  check "work in it" sh -c "echo x >/tmp/deep/x && [ \"\$(cat /tmp/bound/sub/x)\" = x ]"
  check "not in the read-only one" sh -c "! touch /tmp/readonly/new 2>/dev/null"
  check "one file system" same "$(stat -c %d src)" "$(stat -c %d out)"
  check "no inode number twice" sh -c "[ \$(find . -printf '%i\n' | wc -l) -ge 15 ] && [ -z \"\$(find . -printf '%i\n' | sort | uniq -d)\" ]"
  check "a move between shares is a copy" sh -c "echo moved >src/moved && mv src/moved out/moved"
  check "and has left nothing" host sees_moved
  check "a link between shares is refused" sh -c "! ln src/file out/hard 2>/tmp/said && grep -qi cross /tmp/said"
  check "a read-only share" sh -c "[ \"\$(cat ro/file)\" = ro ] && ! touch ro/file 2>/tmp/said && grep -qi read-only /tmp/said"
  check "forced owner and mask" same "$(stat -c %u:%g:%a owned/file)" 1234:567:640
  check "the same file, another share" same "$(stat -c %a src/file)" 666
  check "statfs by share" sh -c "df src ro >/dev/null && [ \$(stat -f -c %b src) -gt 0 ]"
  check "lock the root" flock -n . true

  # Any owner and mode, and what only root could make on the host.
  check "owner and mode" sh -c "echo x >meta/file && chown 1000:1001 meta/file && chmod 4751 meta/file &&
    [ \"\$(stat -c %u:%g:%a meta/file)\" = 1000:1001:4751 ]"
  check "a write takes privileges away" sh -c "chown 1000 meta/file && chmod 4777 meta/file &&
    chroot --userspec=1005:1005 / sh -c 'echo y >>$M/all/meta/file' && [ \"\$(stat -c %a meta/file)\" = 777 ]"
  check "permissions hold" sh -c "chmod 600 meta/file && ! chroot --userspec=1005:1005 / cat $M/all/meta/file 2>/dev/null &&
    chroot --userspec=1000:1000 / cat $M/all/meta/file >/dev/null"
  check "a device" sh -c "mknod meta/null c 1 3 && echo x >meta/null && [ ! -s meta/null ] && [ -c meta/null ]"
  check "a FIFO" sh -c "mkfifo meta/fifo && { echo through >meta/fifo & [ \"\$(cat meta/fifo)\" = through ]; }"
  check "plain files on the host" host sees_metadata
  check "types in listings" same "$(find meta -type c -o -type p | sort | tr '\n' ' ')" "meta/fifo meta/null "
  check "a directory hands its group on" sh -c "mkdir meta/dir && chown :77 meta/dir && chmod g+s meta/dir &&
    mkdir meta/dir/sub && touch meta/dir/file && [ \"\$(stat -c %g:%A meta/dir/sub)\" = 77:drwxr-sr-x ] &&
    [ \"\$(stat -c %g meta/dir/file)\" = 77 ]"
  check "its attribute is hidden" sh -c "[ -z \"\$(getfattr -d meta/file 2>/dev/null)\" ] &&
    ! setfattr -n user.virtbay.meta -v uid=0 meta/file 2>/dev/null"

  # Shares come and go while the guest works in others.
  ( while [ ! -e /tmp/stop ]; do cp src/data out/work && cmp src/data out/work && rm out/work || exit 1; done ) &
  worker=$!
  check "not there yet" not test -e late
  check "the host adds one" host adds_late
  check "it is there at once" same "$(cat late/file)" late
  check "names in any case" same "$(cat late/readme late/README)" "text
text"
  check "links of the host" same "$(readlink late/link)" /mnt/host/srv/data
  mkdir -p /tmp/late
  mount --bind late /tmp/late
  exec 7<late/file 8<>late/open
  echo one >&8
  check "the host removes it" host removes_late
  check "its name is gone" not cat late/file
  check "also where it was bound" not cat /tmp/late/file
  check "what was open goes on" sh -c "[ \"\$(cat <&7)\" = late ] && echo two >&8"
  exec 7<&- 8>&-
  check "the host adds it again" host adds_late_again
  check "it is another one" same "$(cat late/file)" again
  check "the host adds two hundred" host adds_many
  check "all are listed" same "$(ls -d n* | wc -l)" 200
  check "all can be read" sh -c "[ \"\$(cat n*/file | sum)\" = \"\$(seq 1000 1199 | sum)\" ]"
  ( while [ ! -e /tmp/stop2 ]; do ls -l >/dev/null 2>&1; done ) &
  lister=$!
  check "the host removes half of them" host removes_half
  touch /tmp/stop2
  wait $lister
  check "the others are there" sh -c "[ \"\$(cat n*/file | sum)\" = \"\$(seq 1001 2 1199 | sum)\" ]"
  touch /tmp/stop
  wait $worker
  check "nobody else noticed" test $? = 0
  cd /
  for mount in bound deep readonly late; do check "unbind $mount" umount /tmp/$mount; done
  check "the whole is unmounted" umount $M/all
  check "and mounted again" sh -c "mount -t virtiofs all $M/all && [ \"\$(cat $M/all/src/file)\" = src ]"
}
