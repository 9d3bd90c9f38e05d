#!/bin/bash
# Real-guest tests: boots user-mode Linux (or QEMU) on shares of one virtbay process.
#   tests/guest/run.sh [--build DIR] [--list] [SUITE...]
# Each check is one line "ok SUITE: NAME", "FAIL ..." or "skip ..."; the last line counts them.
# Exit status: 0, 1 when a check failed, 77 when everything was skipped.
set -u
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
BUILD=$ROOT/build/release
. "$ROOT/scripts/lib/guest.sh"
. "$HERE/qemu.sh"

suites=()
while [ $# -gt 0 ]; do
  case $1 in
    --build) BUILD=$(cd "$2" && pwd) || exit 2; shift ;;
    -h | --help) sed -n "2,5s/^# \{0,1\}//p" "$0"; exit 0 ;;
    --list) (cd "$HERE/suites" && for f in *.sh; do echo "${f%.sh}"; done); exit 0 ;;
    -*) echo "run.sh: unknown option $1" >&2; exit 2 ;;
    *) suites+=("$1") ;;
  esac
  shift
done
if [ ${#suites[@]} = 0 ]; then
  mapfile -t suites < <("$0" --list)
fi

passed=0 failed=0 skipped=0
pass() { passed=$((passed + 1)); echo "ok   $SUITE: $1"; }
fail() { failed=$((failed + 1)); echo "FAIL $SUITE: $1"; }
skip() { skipped=$((skipped + 1)); echo "skip $SUITE: $1"; }
verdict() { if [ "$1" = 0 ]; then pass "$2"; else fail "$2"; fi; }

# Runs the guest until its script is done; calls host_NAME where the script asks for it.
guest_run() {
  local limit=$1 end line_status done_status=
  end=$((SECONDS + limit))
  while :; do
    guest_line $((end - SECONDS))
    line_status=$?
    [ $line_status = 0 ] || break
    echo "$LINE" >>"$WORK/console.log"
    case $LINE in
      @@PASS*) pass "${LINE#@@PASS }" ;;
      @@FAIL*) fail "${LINE#@@FAIL }" ;;
      @@SKIP*) skip "${LINE#@@SKIP }" ;;
      @@HOST*)
        if "host_${LINE#@@HOST }" >>"$WORK/host.log" 2>&1; then
          echo ok >&"$GUEST_IN"
        else
          echo failed >&"$GUEST_IN"
        fi ;;
      @@DONE*) done_status=${LINE#@@DONE } ;;
      "    "*) echo "$LINE" ;;
    esac
  done
  if [ -z "$done_status" ]; then
    [ $line_status = 2 ] && fail "time limit of $limit s" || fail "the guest ended early"
    tail -n 15 "$WORK/console.log" | sed 's/^/    /'
  elif [ "$done_status" != 0 ]; then
    fail "guest script ended with status $done_status"
    tail -n 15 "$WORK/console.log" | sed 's/^/    /'
  fi
  if grep -aqE "BUG:|WARNING:|Oops|Call Trace|blocked for more than|virtio.*(timeout|error)" \
    "$WORK/console.log"; then
    fail "the guest's kernel complained"
    grep -aE -A12 "BUG:|WARNING:|Oops|Call Trace|blocked for more" "$WORK/console.log" | head -n 25
  fi
  guest_kill
}

# What must hold of the service after any suite.
service_check() {
  local status socket
  service_stop
  status=$?
  verdict $status "virtbay ends cleanly"
  [ $status = 0 ] || tail -n 15 "$WORK/virtbay.log" | sed 's/^/    /'
  for socket in "$WORK"/*.sock; do
    [ -e "$socket" ] && fail "left behind: $(basename "$socket")"
  done
  if grep -aqE "ERROR: (Address|Thread|Leak)Sanitizer|runtime error:|WARNING: ThreadSanitizer" \
    "$WORK/virtbay.log"; then
    fail "a sanitizer complained"
    grep -aE -A20 "Sanitizer|runtime error:" "$WORK/virtbay.log" | head -n 40
  fi
  return 0
}

# share TAG DIRECTORY [KEY VALUE]...: adds a device to the suite's file; to be called in
# suite_shares. Values are TOML; keys are the plugin's, or the device's own with a dot before them.
share() {
  local tag=$1 dir=$2 own="" options=""
  shift 2
  mkdir -p "$dir"
  while [ $# -gt 0 ]; do
    case $1 in
      .*) own+="${1#.} = $2"$'\n' ;;
      *) options+="$1 = $2"$'\n' ;;
    esac
    shift 2
  done
  {
    printf '\n[[device]]\nname = "%s"\nplugin = "virtiofs"\nsocket = "%s"\n%s' \
      "$tag" "$WORK/$tag.sock" "$own"
    printf '[device.options]\ntag = "%s"\nshared-dir = "%s"\n%s' "$tag" "$dir" "$options"
  } >>"$WORK/virtbay.toml"
  GUEST_SHARES+=("$tag=$WORK/$tag.sock")
}

service_file() {
  GUEST_SHARES=()
  GUEST_DEVICES=()
  printf '[host]\nlog-level = "info"\ncontrol-socket = "%s"\n' "$WORK/control.sock" \
    >"$WORK/virtbay.toml"
  [ -z "$HOST_KEYS" ] || printf '%s\n' "$HOST_KEYS" >>"$WORK/virtbay.toml"
  suite_shares
}

boot() {
  guest_start "$WORK" "$INITRAMFS" "$WORK/job" "${MEMORY:-256M}" "${GUEST_SHARES[@]}"
}

# A suite is a file that sets LIMIT (and HOST_KEYS, TOML for [host]), and defines suite_shares (host), guest (run inside), and
# host_NAME functions; or suite_run for what is not one boot of user-mode Linux.
run_suite() {
  local missing
  SUITE=$1
  if [ ! -e "$HERE/suites/$SUITE.sh" ]; then
    echo "run.sh: no suite $SUITE" >&2
    exit 2
  fi
  WORK=$(mktemp -d "${TMPDIR:-/tmp}/virtbay-$SUITE-XXXXXX")
  LIMIT=300
  MEMORY=256M
  NEEDS=
  HOST_KEYS=
  SERVICE_WRAP=()
  unset -f suite_shares suite_run suite_prepare guest
  . "$HERE/suites/$SUITE.sh"
  local tool
  missing=
  for tool in $NEEDS; do
    command -v "$tool" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
      missing="$missing $tool"
  done
  if [ -n "$missing" ]; then
    skip "needs$missing"
  elif declare -F suite_run >/dev/null; then
    suite_run
  else
    missing=$(uml_missing)
    if [ -n "$missing" ]; then
      skip "$missing"
    else
      uml_suite
    fi
  fi
  all_kill
  if [ -n "${VIRTBAY_KEEP:-}" ]; then
    echo "kept: $WORK"
  else
    chmod -R u+rwX "$WORK" 2>/dev/null
    rm -rf "$WORK"
  fi
}

make_job() {
  mkdir -p "$WORK/job"
  cp "$BUILD/bin/fsprobe" "$WORK/job/"
  { cat "$HERE/guest-checks.sh"; declare -f guest; echo guest; } >"$WORK/job/job.sh"
}

uml_suite() {
  make_job
  service_file
  declare -F suite_prepare >/dev/null && suite_prepare
  if ! service_start "$WORK" "$WORK/virtbay.toml"; then
    fail "virtbay starts"
    return
  fi
  boot
  guest_run "$LIMIT"
  service_check
}

trap 'all_kill' EXIT
trap 'exit 130' INT TERM
mkdir -p "$BUILD/guest"
INITRAMFS=$BUILD/guest/initramfs.cpio
if [ -z "$(uml_missing)" ]; then make_initramfs "$INITRAMFS"; fi
for suite in "${suites[@]}"; do run_suite "$suite"; done
echo "guest: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ] || exit 1
[ $passed != 0 ] || exit 77
