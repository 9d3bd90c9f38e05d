#!/bin/bash
# Values that options do not take, and limits and pools that nothing could work with: one line on
# stderr that names the option, exit status 2, or 1 where the value is right and the host says no.
#   cli_options_test.sh BUILD_DIR
set -u
BUILD=${1:?usage: cli_options_test.sh BUILD_DIR}
. "$(dirname "${BASH_SOURCE[0]}")/cli_lib.sh"
SERVE=(serve virtiofs --socket-path=new.sock --shared-dir=share)
NET=(serve virtio-net --socket-path=new.sock --backend=null --check)
PROXY=(serve proxy-net --socket-path=new.sock --check)
CTL=(ctl --control-socket=control.sock)
KEPT="$KEPT|log"

# Flags, wherever they are: the same words.
WORDS="is not one of true, false, yes, no, on, off, 1, 0"
for flag in --readonly --xattr --no-xattr --metadata --writeback --no-writeback --aggregate --syslog --access-platform \
  --no-transfer-helper --no-packed-ring --print-capabilities --foreground --killpriv-v2; do
  for value in maybe 2 -1 x enable 99999999999999999999; do
    refuses 2 "$flag: '$value' $WORDS" "${SERVE[@]}" $flag=$value
  done
done
refuses 2 "-d: takes no value" "${SERVE[@]}" -d=true
refuses 2 "--check: 'maybe' $WORDS" "${NET[@]}" --check=maybe
refuses 2 "--syslog: '2' $WORDS" "${PROXY[@]}" --syslog=2
refuses 2 "--check: 'maybe' $WORDS" run x.toml --check=maybe
refuses 2 "--json: 'maybe' $WORDS" ctl --json=maybe list
refuses 2 "--json: 'maybe' $WORDS" ctl list --json=maybe
refuses 2 "--prometheus: 'x' $WORDS" ctl stats --prometheus=x
refuses 2 "--readonly: 'x' $WORDS" ctl share add a share --readonly=x
refuses 2 "--json: 'x' $WORDS" plugin inspect --json=x virtiofs
refuses 2 "--readonly: is empty" "${SERVE[@]}" --readonly=
for value in true false yes no on off 1 0 TRUE Off; do
  accepts "${NET[@]}" --access-platform=$value --offloads=${value,,} --mergeable=${value,,}
  accepts "${PROXY[@]}" --syslog=false --access-platform=$value
done
refuses 2 "--offloads: 'maybe' is neither true nor false" "${NET[@]}" --offloads=maybe
refuses 2 "-o xattr: takes no value" "${SERVE[@]}" -o xattr=1
refuses 2 "-o cache: is empty" "${SERVE[@]}" -o cache=
accepts --help
says "has a value: true, yes, on, 1, or false, no, off, 0"
# The last one counts, and a negated flag's value is negated.
told() {
  local what=$1
  shift
  starts "${SERVE[@]}" --control-socket=control.sock "$@"
  accepts "${CTL[@]}" inspect virtiofs
  says "$what"
  stops TERM
}
told '"readonly": "true"' --readonly=false --readonly
told '"readonly": "false"' --readonly --readonly --readonly=off
told '"xattr": "true"' --no-xattr=no
told '"xattr": "false"' --xattr --no-xattr=yes

# Numbers.
for value in abc -1 1e3 1.5 99999999999999999999999 0x40; do
  for option in --rlimit-nofile --fd --ready-fd --queue-size --poll-share --arena-size --stop-deadline --poll-window \
    --request-queues --thread-pool-size; do
    case $option$value in --thread-pool-size0x40) continue ;; esac
    refuses 2 "$option" "${SERVE[@]}" $option=$value
  done
  for option in --max-write --vcpus --uid --gid --attr-timeout --entry-timeout --negative-timeout --mode --umask; do
    case $option$value in *-timeout1*) continue ;; esac
    refuses 2 "$option: " "${SERVE[@]}" $option=$value
  done
  for option in --mtu --queue-pairs --pcap-snaplen; do refuses 2 "$option: '$value' is not a number from" "${NET[@]}" $option=$value; done
  for option in --max-tcp-flows --max-udp-flows --max-half-open --max-new-flows --max-buffer-mib --tcp-idle --udp-idle --mtu --queue-pairs; do
    refuses 2 "$option: " "${PROXY[@]}" $option=$value
  done
  refuses 2 "--rlimit-nofile: '$value' is neither 0 nor a number from 32 to" run x.toml --rlimit-nofile=$value
  refuses 2 "--ready-fd: '$value' is not the number of a descriptor" run x.toml --ready-fd=$value
done
for value in -1 1e3 fast 99999999999999999999999; do
  for option in --tx-rate --tx-burst --rx-rate --rx-burst; do refuses 2 "$option: " "${NET[@]}" $option=$value; done
done
for option in --mtu --queue-pairs --rlimit-nofile --queue-size --arena-size; do refuses 2 "$option: is empty" "${NET[@]}" $option=; done
refuses 2 "--queue-size: 99999999999999999999 is out of range" "${NET[@]}" --queue-size=99999999999999999999
refuses 2 "--queue-size: must be a power of two" "${NET[@]}" --queue-size=3
refuses 2 "--arena-size: '99999999999999999999G' is too large" "${NET[@]}" --arena-size=99999999999999999999G
# Named as they were given.
refuses 2 "--option mtu: '5' is not" "${NET[@]}" --option mtu=5
refuses 2 "--allow: " "${PROXY[@]}" --allow=nonsense
refuses 2 "--deny: " "${PROXY[@]}" --deny=nonsense
refuses 2 "--allow, --deny: " "${PROXY[@]}" --allow=any --deny=nonsense
refuses 2 "--log-level: log level 'loud'" run x.toml --log-level=loud --control-socket=c.sock
refuses 2 "--shared-dir: cannot be given together with --aggregate" "${SERVE[@]}" --aggregate
refuses 2 "--shared-dir: cannot be given together with --share" "${SERVE[@]}" --share=a=share

# A limit on open files that is too low for the device: following what is said leads to one that is not.
refuses 2 "--rlimit-nofile: '31' is neither 0 nor a number from 32 to" "${SERVE[@]}" --rlimit-nofile=31
for type in "virtiofs --shared-dir=share" "virtiofs --shared-dir=share --request-queues=8" "virtio-net --backend=null --queue-pairs=16"; do
  limit=32
  for i in 1 2 3; do
    timeout 1 "$VIRTBAY" serve $type --socket-path=new.sock --rlimit-nofile=$limit 2>err </dev/null
    [ $? = 1 ] || break
    count=$((count + 1))
    grep -qF "leaves too few for one more device and its front-end; it has to be at least" err || complain "$type with $limit open files"
    more=$(sed -n 's/.*at least //p' err)
    [ "${more:-0}" -gt $limit ] || { complain "$type: $limit open files are not enough, but ${more:-0} are"; break; }
    limit=$more
  done
  starts serve $type --socket-path=new.sock --rlimit-nofile=$((limit + 2))
  stops TERM
done

# Ranges and slices of the guest's memory.
FORMS="is none of 0xBASE,SIZE[,all] and pool[,SIZE] and pool,all"
for pool in 0x40000000,32M,some pools 0x40000000 all ,all 0x40000000,32M,all,all; do
  refuses 2 "--swiotlb: '$pool' $FORMS" "${NET[@]}" --swiotlb=$pool
done
refuses 2 "--swiotlb: '40000000,1M': the base is not" "${NET[@]}" --swiotlb=40000000,1M
refuses 2 "--swiotlb: '0x40000000,4096': is smaller than 256 KiB" "${NET[@]}" --swiotlb=0x40000000,4096
accepts "${NET[@]}" --swiotlb=0x40000000,256K --rings=pool
device() { printf '[[device]]\nname = "a"\nplugin = "virtiofs"\nsocket = "new.sock"\noptions = { shared-dir = "share" }\n%s\n' "$@"; }
device 'swiotlb = "pool,8M"
arena-size = "8M"' >slice.toml
refuses 1 'slice.toml:1: arena-size: cannot be given together with the size in swiotlb = "pool,SIZE"' run slice.toml
for size in 4097M 4095 0 8193; do
  device "swiotlb = \"pool,$size\"" >slice.toml
  refuses 1 "slice.toml:6: swiotlb: 'pool,$size': a slice has whole 4 KiB pages, at most 4G" run slice.toml
done
device 'swiotlb = "pool"
rings = "pool"' >slice.toml
for check in "" --check; do
  refuses 1 'slice.toml:1: device a: rings = "pool" needs a pool, and the guest has not reported one' run $check slice.toml
done
device 'swiotlb = "pool,1G"' >slice.toml
starts run slice.toml --control-socket=control.sock
count=$((count + 1))
[ "$(grep -c "device a: wants the guest's bounce pool, and the guest has not reported one" log)" = 1 ] || complain "no warning"
accepts "${CTL[@]}" guest 0x10000000,64M
count=$((count + 1))
grep -qF "device a: does without the guest's bounce pool, in which there are no 1073741824 bytes in one piece; 67108864 are left" log ||
  complain "nothing of the slice that is too large"
count=$((count + 1))
"$VIRTBAY" "${CTL[@]}" add virtiofs --name b --socket-path b.sock --shared-dir share --set swiotlb=pool,1G 2>err
[ $? = 1 ] && grep -qF "device b: no 1073741824 bytes in one piece in the guest's bounce pool; 67108864 are left" err ||
  complain "a slice that is too large"
stops TERM

# No devices yet, and a control socket by which they come.
printf '[host]\nlog-level = "info"\n' >none.toml
for check in "" --check; do
  refuses 1 "none.toml: there is no [[device]], and without a control-socket none can be added" run $check none.toml
done
refuses 2 "--control-socket" run
printf '[host]\ncontrol-socket = "control.sock"\n' >only.toml
accepts run --check only.toml
for how in only.toml "none.toml --control-socket=control.sock" --control-socket=control.sock; do
  starts run $how
  accepts "${CTL[@]}" add virtio-net --name net --socket-path net.sock --option backend=null
  accepts "${CTL[@]}" list
  says net.sock
  stops TERM
done

# A command of a device's own is named once.
starts serve virtio-net --socket-path=net.sock --backend=null --control-socket=control.sock --name=net
count=$((count + 1))
"$VIRTBAY" "${CTL[@]}" device net link sideways 2>err
[ $? = 1 ] && [ "$(cat err)" = "virtbay: device net: link: 'sideways' is neither up nor down" ] || complain "link sideways"
count=$((count + 1))
"$VIRTBAY" "${CTL[@]}" device net bogus 2>err
[ $? = 1 ] && [ "$(cat err)" = "virtbay: device net: bogus: there is no such command, only link, announce and show" ] || complain "device net bogus"
stops TERM

# So is a directory in which a plugin is not.
count=$((count + 1))
"$VIRTBAY" plugin inspect nosuch 2>err
[ -z "$(sed 's/.* in //' err | tr -d ' ' | tr , '\n' | sort | uniq -d)" ] || complain "a directory is named twice"

# Whoever asks before the devices of the file are there is answered when they are.
{
  printf '[host]\ncontrol-socket = "control.sock"\n'
  for i in $(seq 60); do
    printf '[[device]]\nname = "d%d"\nplugin = "virtiofs"\nsocket = "d%d.sock"\noptions = { shared-dir = "share" }\n' "$i" "$i"
  done
} >many.toml
"$VIRTBAY" run many.toml </dev/null >log 2>&1 &
SERVICE=$!
PIDS+=("$SERVICE")
until [ -S control.sock ] || ! kill -0 $SERVICE 2>/dev/null; do :; done
accepts "${CTL[@]}" list
says d1.sock
says d60.sock
stops TERM

echo "$count checks, $failed failed"
[ $failed = 0 ]
