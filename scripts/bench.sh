#!/bin/bash
# Runs a benchmark suite: builds what it needs (release), measures, and leaves tables on the
# terminal and SVG and JSON in build/bench. Without arguments: lists the suites.
#   scripts/bench.sh SUITE [--quick] [--help for the suite's other options]
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
suites=$root/tests/bench

usage() {
  echo "Usage: scripts/bench.sh SUITE [--quick] [options]"
  echo "Suites:"
  local file name
  for file in "$suites"/suite_*.py; do
    name=${file##*/suite_}
    printf '  %-10s %s\n' "${name%.py}" "$(sed -n '1s/^"""\(.*\)"""$/\1/p' "$file")"
  done
}

if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
  usage
  exit 0
fi
suite=$1
shift
case $suite in
  *[!a-z0-9-]*) known= ;;
  *) known=$suites/suite_$suite.py ;;
esac
if [ -z "$known" ] || [ ! -f "$known" ]; then
  echo "bench.sh: no suite '$suite'" >&2
  usage >&2
  exit 2
fi

# Another build directory is taken as it is configured.
build=${VIRTBAY_BENCH_BUILD:-$root/build/release}
for word in "$@"; do
  case $word in -h | --help) exec python3 "$known" --build "$build" --out "$root/build/bench" --help ;; esac
done
case $suite in
  virtiofs) targets=(virtbay_device_host virtiofs virtiofs_bench) ;;
  abi) targets=(abi_bench null) ;;
  virtq) targets=(virtq_bench null) ;;
  isolation) targets=(isolation_bench bounce virtiofs) ;;
  scale) targets=(virtbay_device_host virtiofs virtio-net scale_bench) ;;
  reload) targets=(all) ;;
  net) targets=(virtbay_device_host virtio-net proxy-net net_bench) ;;
  *) targets=(all) ;;
esac
if [ ! -f "$build/CMakeCache.txt" ]; then
  if [ -x "$root/scripts/setup.sh" ]; then "$root/scripts/setup.sh" >&2; fi
  (cd "$root" && cmake --preset release) >&2
fi
cmake --build "$build" --target "${targets[@]}" >&2

exec python3 "$known" --build "$build" --out "$root/build/bench" "$@"
