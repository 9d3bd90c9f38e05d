# git: lock files, hard links, renames and mapped packs.
LIMIT=500
NEEDS=git
suite_shares() {
  share a "$WORK/a"
  share b "$WORK/b" cache '"never"'
}
host_fsck() { git -c safe.directory='*' -C "$WORK/a/copy" fsck --full; }
guest() {
  make_repo() {
    git init -q -b main "$1" && cd "$1" && $JOB/fsprobe tree make files 1000 3 &&
      git add . && git commit -qm one && git tag one &&
      for f in files/*/*/*/f*00; do echo changed >>$f; done &&
      git mv files moved && git commit -qam two && git tag two
  }
  check "init, add and commit of 1,000 files" make_repo $M/a/repo
  check "clone by hard links" git clone -q --local $M/a/repo $M/a/copy
  check "clone to a share without a cache" git clone -q --no-hardlinks $M/a/repo $M/b/copy
  check "fsck" git -C $M/a/copy fsck --full --strict
  check "fsck on the host" host fsck
  check "checkout of another tag" git -C $M/a/copy checkout -q one
  check "status is clean" same "$(git -C $M/a/copy status --porcelain | head)" ""
  check "back again" git -C $M/a/copy checkout -q two
  check "repack" git -C $M/a/copy gc -q
  check "fsck after repack" git -C $M/b/copy fsck --full
  check "status is clean without a cache" same "$(git -C $M/b/copy status --porcelain | head)" ""
  check "worktree" git -C $M/a/copy worktree add -q $M/a/worktree one
}
