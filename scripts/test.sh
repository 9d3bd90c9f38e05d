#!/bin/bash
# Builds everything and runs every test; works on a fresh Debian 12 and from any directory.
#   scripts/test.sh [--preset release|debug|asan|tsan] [--no-guest]
# Ends with the line "N passed, N failed, N skipped" over all suites; fails when one failed.
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd)
PRESET=release
GUEST=1
while [ $# -gt 0 ]; do
  case $1 in
    --preset) PRESET=${2:-}; shift ;;
    --preset=*) PRESET=${1#*=} ;;
    --no-guest) GUEST= ;;
    -h | --help) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "test.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
case $PRESET in
  release | debug | asan | tsan) ;;
  *) echo "test.sh: no preset '$PRESET'" >&2; exit 2 ;;
esac
BUILD=$ROOT/build/$PRESET

passed=0 failed=0 skipped=0
finish() {
  echo "$passed passed, $failed failed, $skipped skipped"
  [ $failed = 0 ] && [ $passed != 0 ]
  exit
}
# A step that is no suite: its failure is one.
step() {
  echo "== $1 ($SECONDS s)"
  shift
  "$@" && return
  failed=$((failed + 1))
  echo "test.sh: failed: $*" >&2
  finish
}

"$ROOT/scripts/setup.sh" || { failed=1; finish; }
cd "$ROOT" || exit 1

# The kernel of the guests with DMA pools takes minutes where it is not cached yet, the modules of
# user-mode Linux one: from now on, with what the other steps leave of the processors. The suites
# that need them wait for them, and say what is wrong if there are none.
kernel_pid=
if [ -n "$GUEST" ] && [ "$(dpkg --print-architecture)" = amd64 ]; then
  setsid nice -n 10 sh -c 'tests/guest/uml_modules.sh; exec tests/guest/dma_pools/build-kernel.sh' \
    >/dev/null 2>&1 </dev/null &
  kernel_pid=$!
fi
end_kernel() {
  [ -z "$kernel_pid" ] || kill -TERM -- "-$kernel_pid" 2>/dev/null
}
trap end_kernel EXIT
trap 'exit 130' INT TERM
. "$ROOT/scripts/lib/build.sh"
step "configure $PRESET" configure_build "$PRESET"
step "build" cmake --build --preset "$PRESET" -- -j"$(nproc)" --quiet

echo "== unit and contract tests ($SECONDS s)"
report=$BUILD/ctest.xml
rm -f "$report"
ctest --test-dir "$BUILD" --label-exclude guest --parallel "$(nproc)" --output-on-failure \
  --progress --output-junit "$report"
ctest_status=$?
count() { sed -n '/<testsuite /,/>/p' "$report" | tr '\n\t' '  ' | sed -n "s/.* $1=\"\([0-9]*\)\".*/\1/p"; }
if [ -s "$report" ]; then
  tests=$(count tests) bad=$(count failures) out=$(($(count skipped) + $(count disabled)))
  passed=$((passed + tests - bad - out)) failed=$((failed + bad)) skipped=$((skipped + out))
fi
# It may have failed as a whole (a test that does not exist, no tests).
[ $ctest_status = 0 ] || [ $failed != 0 ] || failed=1

if [ -n "$GUEST" ]; then
  echo "== real guests ($SECONDS s)"
  mkfifo "$BUILD/guest.fifo.$$"
  tee "$BUILD/guest.log" <"$BUILD/guest.fifo.$$" &
  tests/guest/run.sh --build "$BUILD" >"$BUILD/guest.fifo.$$" 2>&1
  status=$?
  wait
  rm -f "$BUILD/guest.fifo.$$"
  read -r p f s < <(sed -n 's/^guest: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' \
    "$BUILD/guest.log" | tail -n 1) || { p=0 f=1 s=0; }
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
  [ $status = 0 ] || [ $status = 77 ] || [ "$f" != 0 ] || failed=$((failed + 1))
else
  echo "== real guests: left out"
fi
echo "== done ($SECONDS s)"
finish
