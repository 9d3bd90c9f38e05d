#!/bin/bash
# Installs the Debian packages of scripts/packages.txt that are missing; does nothing when none is.
# Needs root or sudo only when something is missing.
#   scripts/setup.sh
set -eu
for word in "$@"; do
  case $word in
    -h | --help) [ $# = 1 ] && sed -n '2,4s/^# \{0,1\}//p' "$0" && exit 0 ;;
  esac
  echo "setup.sh: takes no arguments, not '$*'" >&2
  exit 2
done
HERE=$(cd "$(dirname "$0")" && pwd)

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "setup.sh: this is not a Debian system; install what corresponds to scripts/packages.txt" >&2
  exit 1
fi

architecture=$(dpkg --print-architecture)
wanted=()
while read -r name architectures; do
  case $name in '' | '#'*) continue ;; esac
  case " ${architectures:-$architecture} " in *" $architecture "*) wanted+=("$name") ;; esac
done <"$HERE/packages.txt"

# A package counts by its plain name or as this architecture's.
installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null |
  awk '$2 == "installed" { print $1 }') || true
missing=()
for name in "${wanted[@]}"; do
  grep -qxF "$name" <<<"$installed" || missing+=("$name")
done
[ ${#missing[@]} != 0 ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
  as_root=(sudo)
else
  echo "setup.sh: needs root or sudo to install: ${missing[*]}" >&2
  exit 1
fi

echo "setup: installing ${missing[*]}"
as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
install() { "${as_root[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null; }
# The lists may be missing or so old that they name files that are gone.
"${as_root[@]}" update
if ! install; then
  echo "setup.sh: apt-get could not install: ${missing[*]}" >&2
  exit 1
fi
