# Names, open files without names, sparse files, extended attributes, trees of 100,000 files.
LIMIT=1000
suite_shares() { share a "$WORK/a" xattr true posix-acl true; }
host_tree() { [ "$(find "$WORK/a/tree" -type f | wc -l)" = 100000 ]; }
host_tree_gone() { [ "$(find "$WORK/a/tree" -type f | wc -l)" = 0 ]; }
guest() {
  LIMIT=400
  mkdir -p $M/a/unlinked $M/a/names $M/a/ranges
  check "unlinked-open files" $FSPROBE unlinked $M/a/unlinked
  check "names, links and renames" $FSPROBE names $M/a/names
  check "sparse files, fallocate, copy_file_range" $FSPROBE ranges $M/a/ranges
  xattrs() {
    cd $M/a && touch x && setfattr -n user.virtbay -v value x &&
      same "$(getfattr --only-values -n user.virtbay x)" value &&
      setfattr -x user.virtbay x && not getfattr -n user.virtbay x
  }
  check "extended attributes" xattrs
  acls() { cd $M/a && touch acl && setfacl -m u:1234:rw acl && getfacl -n acl | grep -q '^user:1234:rw-'; }
  check "POSIX ACLs" acls
  deep() {
    local path=$M/a/deep i
    for i in $(seq 60); do path=$path/a-directory-with-a-rather-long-name; done
    mkdir -p "$path" && echo end >"$path/file" && same "$(cat "$path/file")" end && rm -r $M/a/deep
  }
  check "sixty levels deep" deep
  check "100,000 files are made" $FSPROBE tree make $M/a/tree 100000 10
  check "the host sees 100,000 files" host tree
  echo 3 >/proc/sys/vm/drop_caches
  check "100,000 files are found again" $FSPROBE tree check $M/a/tree 100000 10
  check "find counts 100,000 files" same "$(find $M/a/tree -type f | wc -l)" 100000
  check "100,000 files are removed" $FSPROBE tree remove $M/a/tree 100000 10
  check "the host sees none of them" host tree_gone
}
