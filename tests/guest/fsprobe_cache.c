/* fsprobe's commands about what the guest keeps in its page cache: shared mappings, appended data,
 * writes and times that are held back. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fsprobe.h"

/* mmap-write FILE BYTES TEXT: puts TEXT at every page through a shared mapping. */
int MmapWrite(int argc, char** argv) {
  if (argc < 3) return 2;
  const int fd = OpenAt(argv[0], O_RDWR | O_CREAT);
  const size_t size = (size_t)atol(argv[1]);
  CHECK(ftruncate(fd, (off_t)size) == 0);
  char* map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) Fail("mmap shared of %s", argv[0]);
  for (size_t at = 0; at < size; at += 4096) memcpy(map + at, argv[2], strlen(argv[2]));
  CHECK(msync(map, size, MS_SYNC) == 0);
  CHECK(munmap(map, size) == 0);
  return 0;
}

/* mmap-check FILE TEXT: every page of the file begins with TEXT, by mapping and by read. */
int MmapCheck(int argc, char** argv) {
  if (argc < 2) return 2;
  const int fd = OpenAt(argv[0], O_RDONLY);
  struct stat info;
  CHECK(fstat(fd, &info) == 0);
  CHECK(info.st_size > 0);
  const size_t size = (size_t)info.st_size;
  const size_t length = strlen(argv[1]);
  const char* map = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) Fail("mmap shared of %s", argv[0]);
  char buffer[4096];
  for (size_t at = 0; at < size; at += 4096) {
    if (memcmp(map + at, argv[1], length) != 0) Fail("mapping differs at %zu", at);
    CHECK(pread(fd, buffer, length, (off_t)at) == (ssize_t)length);
    if (memcmp(buffer, argv[1], length) != 0) Fail("read differs at %zu", at);
  }
  return 0;
}

/* mmap-pair FILE ROUNDS: two processes hand a counter to and fro through one shared mapping. */
int MmapPair(int argc, char** argv) {
  if (argc < 2) return 2;
  const uint32_t rounds = (uint32_t)atol(argv[1]);
  const int fd = OpenAt(argv[0], O_RDWR | O_CREAT);
  CHECK(ftruncate(fd, 4096) == 0);
  uint32_t* shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (shared == MAP_FAILED) Fail("mmap shared of %s", argv[0]);
  __atomic_store_n(shared, 0, __ATOMIC_SEQ_CST);
  const pid_t child = fork();
  const uint32_t turn = child == 0 ? 1 : 0;
  for (uint32_t i = 0; i < rounds; ++i) {
    while (__atomic_load_n(shared, __ATOMIC_SEQ_CST) % 2 != turn) sched_yield();
    __atomic_fetch_add(shared, 1, __ATOMIC_SEQ_CST);
  }
  if (child == 0) _exit(0);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(__atomic_load_n(shared, __ATOMIC_SEQ_CST) == 2 * rounds);
  CHECK(msync(shared, 4096, MS_SYNC) == 0);
  uint32_t stored = 0;
  CHECK(pread(fd, &stored, sizeof(stored), 0) == sizeof(stored));
  CHECK(stored == 2 * rounds);
  return 0;
}

enum { kAppendPages = 8, kAppendRounds = 40, kAppendBytes = 100 };

/* Byte `at` of what append-map makes. */
static char AppendByte(size_t at) {
  const size_t mapped = kAppendPages * 4096;
  if (at >= mapped) return (char)('a' + (at - mapped) / kAppendBytes % 26);
  const size_t in_page = at % 4096;
  return in_page < kAppendRounds ? (char)('A' + in_page % 26) : '.';
}

/* append-map FILE: one descriptor with O_APPEND for both: pages of a shared mapping are changed
 * while data is appended. Each must end up in its own place. */
int AppendMap(int argc, char** argv) {
  if (argc < 1) return 2;
  const size_t mapped = kAppendPages * 4096;
  char text[4096];
  memset(text, '.', sizeof(text));
  const int fd = OpenAt(argv[0], O_RDWR | O_CREAT | O_TRUNC | O_APPEND);
  for (int i = 0; i < kAppendPages; ++i) CHECK(write(fd, text, sizeof(text)) == sizeof(text));
  char* map = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) Fail("mmap shared of %s", argv[0]);
  for (int round = 0; round < kAppendRounds; ++round) {
    for (int page = 0; page < kAppendPages; ++page) {
      map[page * 4096 + round] = AppendByte((size_t)round);
    }
    memset(text, AppendByte(mapped + (size_t)round * kAppendBytes), kAppendBytes);
    CHECK(write(fd, text, kAppendBytes) == kAppendBytes);
    /* Written back at once, by somebody later, and by the end of the mapping. */
    if (round % 3 == 0) CHECK(msync(map, mapped, MS_SYNC) == 0);
    if (round % 3 == 1) CHECK(fsync(fd) == 0);
  }
  CHECK(munmap(map, mapped) == 0);
  CHECK(close(fd) == 0);
  return AppendCheck(argc, argv);
}

/* append-check FILE: the file is what append-map makes. */
int AppendCheck(int argc, char** argv) {
  if (argc < 1) return 2;
  const size_t size = kAppendPages * 4096 + kAppendRounds * kAppendBytes;
  const int fd = OpenAt(argv[0], O_RDONLY);
  struct stat info;
  CHECK(fstat(fd, &info) == 0);
  if ((size_t)info.st_size != size) Fail("%lld bytes, not %zu", (long long)info.st_size, size);
  char* have = malloc(size);
  CHECK(have != NULL);
  CHECK(pread(fd, have, size, 0) == (ssize_t)size);
  for (size_t at = 0; at < size; ++at) {
    if (have[at] != AppendByte(at))
      Fail("byte %zu is '%c', not '%c'", at, have[at], AppendByte(at));
  }
  free(have);
  return 0;
}

/* A file with 10,000 bytes in it that the kernel may hold back. */
static int Dirty(const char* name) {
  char text[10000];
  memset(text, name[0], sizeof(text));
  const int fd = OpenAt(name, O_RDWR | O_CREAT | O_EXCL);
  CHECK(write(fd, text, sizeof(text)) == (ssize_t)sizeof(text));
  return fd;
}

/* held-back DIR: data and times that the kernel holds back find their file when it has lost its
 * name; syncfs(2) tells of each one that did not. */
int HeldBack(int argc, char** argv) {
  if (argc < 1 || chdir(argv[0]) != 0) return 2;
  /* Errors that come after this open are told by it. */
  const int dir = OpenAt(".", O_RDONLY | O_DIRECTORY);
  struct stat info;
  char byte = 0;

  CHECK(close(Dirty("removed")) == 0);
  CHECK(unlink("removed") == 0);
  CHECK(syncfs(dir) == 0);

  CHECK(close(Dirty("old")) == 0);
  CHECK(close(Dirty("new")) == 0);
  CHECK(rename("new", "old") == 0);
  CHECK(syncfs(dir) == 0);
  CHECK(stat("old", &info) == 0 && info.st_size == 10000);

  int fd = Dirty("open-removed");
  CHECK(unlink("open-removed") == 0);
  CHECK(pwrite(fd, "x", 1, 9999) == 1);
  CHECK(syncfs(dir) == 0);
  CHECK(fsync(fd) == 0);
  CHECK(pread(fd, &byte, 1, 9999) == 1 && byte == 'x');
  CHECK(close(fd) == 0);
  CHECK(syncfs(dir) == 0);

  fd = Dirty("open-old");
  CHECK(close(Dirty("replacement")) == 0);
  CHECK(rename("replacement", "open-old") == 0);
  CHECK(pwrite(fd, "y", 1, 0) == 1);
  CHECK(syncfs(dir) == 0);
  CHECK(fsync(fd) == 0);
  CHECK(fstat(fd, &info) == 0 && info.st_nlink == 0 && info.st_size == 10000);
  CHECK(close(fd) == 0);

  CHECK(close(Dirty("a")) == 0);
  CHECK(close(Dirty("b")) == 0);
  CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
  CHECK(syncfs(dir) == 0);
  fd = OpenAt("a", O_RDONLY);
  CHECK(pread(fd, &byte, 1, 0) == 1 && byte == 'b');

  /* Known, but not open as far as the server can tell. */
  CHECK(close(Dirty("pointed-at")) == 0);
  const int pointer = OpenAt("pointed-at", O_PATH);
  CHECK(unlink("pointed-at") == 0);
  CHECK(fstat(pointer, &info) == 0 && info.st_nlink == 0);
  CHECK(close(pointer) == 0);
  CHECK(syncfs(dir) == 0);
  return 0;
}
