# A process that may open 64 files: what the guest opens finds its end, listing and looking do not.
LIMIT=240
HOST_KEYS="rlimit-nofile = 64"
suite_shares() { share a "$WORK/a"; }
suite_prepare() {
  local i
  for i in 1 2 3 4 5 6 7 8 9; do
    mkdir -p "$WORK/a/tree/d$i/sub/deeper" && echo $i >"$WORK/a/tree/d$i/sub/deeper/file"
  done
}
host_limit() { grep -q "^Max open files *64 " "/proc/$VIRTBAY_PID/limits"; }
guest() {
  check "the limit holds" host limit
  many() {
    local had
    had=$($FSPROBE open-many $M/a/tree 500) || { echo "$had"; return 1; }
    echo "opened $had"
    [ "$had" -ge 5 ] && [ "$had" -lt 64 ]
  }
  check "list and look while the limit is reached" many
  check "files can be opened again" sh -c "for i in 1 2 3 4 5 6 7 8 9; do cat $M/a/tree/d\$i/sub/deeper/file || exit 1; done"
  check "and again" many
  check "a tree can be removed and made" sh -c "cp -r $M/a/tree $M/a/copy && rm -r $M/a/tree && mv $M/a/copy $M/a/tree"
}
