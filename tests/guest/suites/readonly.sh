# A read-only share: everything can be read, nothing changed, whatever the guest tries.
LIMIT=90
suite_shares() { share a "$WORK/a" readonly true xattr true; }
suite_prepare() {
  echo text >"$WORK/a/file"
  mkdir "$WORK/a/dir"
  ln -s file "$WORK/a/link"
  (cd "$WORK/a" && find . -printf '%p %m %s %T@\n' | sort) >"$WORK/before"
}
host_unchanged() { (cd "$WORK/a" && find . -printf '%p %m %s %T@\n' | sort) | diff "$WORK/before" -; }
guest() {
  cd $M/a || return
  check "read" same "$(cat file link)" "text
text"
  check "list" same "$(ls | tr '\n' ' ')" "dir file link "
  for command in "echo x >file" "echo x >>file" "echo x >new" "touch file" "chmod 600 file" \
    "chown 1:1 file" "rm file" "mkdir new" "rmdir dir" "mv file other" "ln file hard" \
    "ln -s x soft" "mknod node p" "truncate -s 0 file" "setfattr -n user.a -v b file" \
    "fallocate -l 4096 file"; do
    check "refused: $command" sh -c "! ( $command ) 2>/tmp/said && grep -qi 'read-only' /tmp/said"
  done
  check "nothing changed on the host" host unchanged
}
