# A share's requests are recorded while a guest works on it, and replayed without one on a copy of
# what the share was before: each is answered again.
LIMIT=180
NEEDS=git
suite_shares() {
  share a "$WORK/a" .record "\"$WORK/a.record\"" .record-payload true
  share b "$WORK/b"
}
suite_prepare() {
  mkdir -p "$WORK/a/old/sub"
  seq 1000 >"$WORK/a/old/numbers"
  seq 10 | while read -r n; do echo "$n" >"$WORK/a/old/sub/$n"; done
  ln -s numbers "$WORK/a/old/link"
  cp -a "$WORK/a" "$WORK/before"
}
# Names, kinds, modes, links and contents.
tree_of() {
  (cd "$1" && find . \( -type d -printf '%P %y %m\n' \) -o \( -type f -printf '%P %y %m %n %s\n' \) -o -printf '%P %y %m %l\n' |
    sort && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}
host_replayed() {
  # The last answers are on their way to the file.
  sleep 0.5
  "$BUILD/bin/virtbay" replay "$WORK/a.record" --option tag=a --option "shared-dir=$WORK/before" &&
    tree_of "$WORK/a" >"$WORK/tree.recorded" && tree_of "$WORK/before" >"$WORK/tree.replayed" &&
    grep -q "^project/.git/index f " "$WORK/tree.recorded" &&
    diff "$WORK/tree.recorded" "$WORK/tree.replayed"
}
host_heads() {
  "$BUILD/bin/virtbay" record b --output "$WORK/b.record" --duration 1 \
    --control-socket "$WORK/control.sock" | grep -q "b.record: [1-9][0-9]* records of 1 devices" &&
    "$BUILD/bin/virtbay" replay "$WORK/b.record" --option tag=b --option "shared-dir=$WORK/b" |
    grep -q "does not begin with the device's first request"
}
guest() {
  check "a project under git" sh -c "cd $M/a && git init -q project && cd project &&
    for n in \$(seq 40); do seq \$n 2000 >file\$n; done && git add . && git commit -qm one &&
    git rm -q file1 && git mv file2 renamed && seq 9 >>file3 && git commit -qam two &&
    git gc -q && git checkout -q -b other HEAD~1 && git status"
  check "every kind of entry and change" sh -c "cd $M/a && mkdir -p new/deep && mkfifo new/fifo &&
    ln old/numbers new/hard && ln -s ../old new/soft && mv old/sub/1 new/deep/moved &&
    rm -r old/sub && chmod 600 old/numbers && truncate -s 100 new/hard && cp -r old copy &&
    head -c 3000000 /dev/urandom >new/large && dd if=/dev/urandom of=new/large bs=1000 seek=100 count=50 conv=notrunc &&
    rmdir new/deep 2>/dev/null; rm new/soft && touch -d @1000000000 new/large"
  check "written through a mapping" $FSPROBE mmap-write $M/a/mapped 100000 bytes
  sync
  check "all of it is answered again in a replay" host replayed
  (while [ ! -e /tmp/stop ]; do echo text >$M/b/file && ls -l $M/b && cat $M/b/file; done >/dev/null) &
  check "a running device is recorded" host heads
  touch /tmp/stop
  wait
}
