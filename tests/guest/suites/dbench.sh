# dbench: the file operations of a file server under load, from several clients.
LIMIT=180
NEEDS=dbench
suite_shares() {
  share a "$WORK/a"
  share b "$WORK/b" cache '"never"'
}
guest() {
  load=$(ls /usr/share/dbench/client.txt /usr/share/doc/dbench/loadfiles/client.txt 2>/dev/null | head -n 1)
  if [ -z "$load" ]; then
    skip "dbench has no load file"
    return
  fi
  run() { dbench -t 10 -c "$load" -D "$1" "$2" | tee /tmp/dbench.out && grep -q Throughput /tmp/dbench.out; }
  check "one client" run $M/a 1
  check "eight clients" run $M/a 8
  check "four clients, no cache" run $M/b 4
}
