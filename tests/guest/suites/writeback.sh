# A guest that holds writes and times back (--writeback): nothing of it is lost with a file's name.
LIMIT=120
suite_shares() { share a "$WORK/a" writeback true; }
host_same() { cmp "$WORK/a/from" "$WORK/a/to" && [ "$(stat -c %s "$WORK/a/log")" = 300 ]; }
guest() {
  mkdir $M/a/probe
  check "what is held back finds files that lost their name" $FSPROBE held-back $M/a/probe
  check "append and shared mapping" $FSPROBE append-map $M/a/appended
  check "unlinked-open files" sh -c "mkdir $M/a/unlinked && $FSPROBE unlinked $M/a/unlinked"
  removed() {
    cd $M/a && echo text >file && rm file && sync -f . && echo a >x && echo b >y && mv x y &&
      sync -f y && same "$(cat y)" a
  }
  check "sync -f after rm and mv" removed
  copied() {
    head -c 3000000 /dev/urandom >$M/a/from && cp $M/a/from $M/a/to &&
      for i in $(seq 100); do printf '%3d' $i; done >$M/a/log &&
      sync -f $M/a/log
  }
  check "small and large writes" copied
  check "the host sees them" host same
}
