# SQLite in WAL mode (shared mappings and locks) with two processes, then read by the host.
LIMIT=180
NEEDS=sqlite3
suite_shares() {
  share a "$WORK/a"
  share c "$WORK/c" cache '"always"'
}
host_reads_a() { [ "$(sqlite3 "$WORK/a/db" 'pragma integrity_check; select count(*) from t;')" = "ok
400" ]; }
host_reads_c() { [ "$(sqlite3 "$WORK/c/db" 'pragma integrity_check; select count(*) from t;')" = "ok
400" ]; }
guest() {
  writer() {
    local i
    for i in $(seq 1 20); do
      printf '.timeout 20000\nbegin immediate;\n'
      seq -f "insert into t values ('$2-$i-%g');" 1 10
      printf 'commit;\n'
    done | sqlite3 -bail "$1"
  }
  two_writers() {
    sqlite3 -bail "$1" "pragma journal_mode=wal; create table t (x text);" || return 1
    writer "$1" one &
    writer "$1" two || return 1
    wait $! || return 1
    same "$(sqlite3 "$1" 'pragma integrity_check;')" ok &&
      same "$(sqlite3 "$1" 'select count(*) from t;')" 400
  }
  check "two processes write in WAL mode" two_writers $M/a/db
  check "the host reads the database" host reads_a
  check "two processes write in WAL mode, cache=always" two_writers $M/c/db
  check "the host reads that database" host reads_c
  check "rollback journal" sh -c "sqlite3 -bail $M/a/other 'pragma journal_mode=delete;
    create table t (x); insert into t values (1); begin; insert into t values (2); rollback;' &&
    [ \"\$(sqlite3 $M/a/other 'select count(*) from t')\" = 1 ]"
}
