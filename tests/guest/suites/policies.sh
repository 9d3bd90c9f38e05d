# What the guest sees of the host's changes under each cache policy.
LIMIT=120
POLICIES="auto always never metadata"
suite_shares() {
  local policy
  for policy in $POLICIES; do share $policy "$WORK/$policy" cache "\"$policy\""; done
  share timed "$WORK/timed" attr-timeout 1000 entry-timeout 1000 negative-timeout 1000
}
suite_prepare() {
  local dir
  for dir in $POLICIES timed; do echo old >"$WORK/$dir/file"; echo old >"$WORK/$dir/victim"; echo old >"$WORK/$dir/kept"; done
}
host_changes() {
  local dir
  for dir in $POLICIES timed; do
    echo "new and longer" >"$WORK/$dir/file" && rm "$WORK/$dir/victim" "$WORK/$dir/kept" && echo x >"$WORK/$dir/fresh" || return 1
  done
}
host_reads() { local dir; for dir in $POLICIES; do [ "$(cat "$WORK/$dir/guest")" = "from guest" ] || return 1; done; }
guest() {
  for dir in auto always never metadata timed; do
    check "$dir: read" same "$(cat $M/$dir/file $M/$dir/victim)" "old
old"
    # Only looked at: a read makes the guest ask for the access time again.
    check "$dir: look" test -e $M/$dir/kept
    check "$dir: a name that does not exist" not test -e $M/$dir/fresh
    check "$dir: write" sh -c "echo from guest >$M/$dir/guest"
  done
  check "the host reads what each wrote" host reads
  check "the host changes files" host changes
  check "never: sees the change at once" same "$(cat $M/never/file)" "new and longer"
  check "never: sees the removal at once" not test -e $M/never/victim
  check "never: sees the new file at once" test -e $M/never/fresh
  # The default remembers for a second.
  sleep 1.5
  check "auto: sees the change" same "$(cat $M/auto/file)" "new and longer"
  check "auto: sees the removal" not test -e $M/auto/victim
  check "auto: sees the new file" test -e $M/auto/fresh
  check "always: keeps names" test -e $M/always/kept
  check "metadata: keeps names" test -e $M/metadata/kept
  check "timeouts: keep names" test -e $M/timed/kept
  check "timeouts: keep absent names" not test -e $M/timed/fresh
  for dir in always metadata timed; do
    umount $M/$dir && mount -t virtiofs $dir $M/$dir
    check "$dir: a new mount sees the change" same "$(cat $M/$dir/file)" "new and longer"
  done
}
