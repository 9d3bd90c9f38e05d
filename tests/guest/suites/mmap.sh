# Shared mappings under every cache policy.
LIMIT=120
suite_shares() {
  local policy
  for policy in auto always never metadata; do share $policy "$WORK/$policy" cache "\"$policy\""; done
}
host_checks() {
  local policy
  for policy in auto always never metadata; do
    "$BUILD/bin/fsprobe" mmap-check "$WORK/$policy/map" "$policy" &&
      "$BUILD/bin/fsprobe" append-check "$WORK/$policy/appended" || return 1
  done
}
guest() {
  for policy in auto always never metadata; do
    check "$policy: write through a mapping" $FSPROBE mmap-write $M/$policy/map 1048576 $policy
    check "$policy: read it back" $FSPROBE mmap-check $M/$policy/map $policy
    check "$policy: two processes, one mapping" $FSPROBE mmap-pair $M/$policy/pair 200
    check "$policy: append while a mapping is written" $FSPROBE append-map $M/$policy/appended
    check "$policy: run a program" sh -c "cp /bin/true $M/$policy/true && $M/$policy/true"
  done
  check "the host reads what was mapped" host checks
}
