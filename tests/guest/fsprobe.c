/* fsprobe: small file-system probes that the guest's scripts cannot do with ordinary tools.
 * Each prints what went wrong and exits 0 (as it should be), 1 (not) or 2 (usage).
 * Single-threaded; runs inside the guest and on the host. */
#define _GNU_SOURCE
#include "fsprobe.h"

#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void Fail(const char* format, ...) {
  const int error = errno;
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf(" (errno %d: %s)\n", error, strerror(error));
  exit(1);
}

int OpenAt(const char* path, int flags) {
  const int fd = open(path, flags | O_CLOEXEC, 0644);
  if (fd < 0) Fail("open %s", path);
  return fd;
}

/* ---- names and open files -------------------------------------------------------------------- */

/* unlinked DIR: a file without a name is still a file. */
static int Unlinked(int argc, char** argv) {
  if (argc < 1 || chdir(argv[0]) != 0) return 2;
  const int fd = OpenAt("gone", O_RDWR | O_CREAT | O_EXCL);
  CHECK(write(fd, "before", 6) == 6);
  CHECK(unlink("gone") == 0);
  struct stat info;
  CHECK(fstat(fd, &info) == 0);
  CHECK(info.st_nlink == 0);
  CHECK(info.st_size == 6);
  CHECK(pwrite(fd, "after", 5, 6) == 5);
  char buffer[12] = {0};
  CHECK(pread(fd, buffer, 11, 0) == 11);
  CHECK(memcmp(buffer, "beforeafter", 11) == 0);
  CHECK(fsync(fd) == 0);
  CHECK(ftruncate(fd, 3) == 0);
  CHECK(fstat(fd, &info) == 0);
  CHECK(info.st_size == 3);
  CHECK(fchmod(fd, 0600) == 0);
  CHECK(fstat(fd, &info) == 0);
  CHECK((info.st_mode & 0777) == 0600);
  CHECK(open("gone", O_RDONLY) < 0);
  /* A new file of that name is another file. */
  const int again = OpenAt("gone", O_RDWR | O_CREAT | O_EXCL);
  CHECK(write(again, "x", 1) == 1);
  CHECK(pread(fd, buffer, 11, 0) == 3);
  /* Replaced by a rename, it lives on as well. */
  const int other = OpenAt("other", O_RDWR | O_CREAT | O_EXCL);
  CHECK(write(other, "other", 5) == 5);
  CHECK(rename("other", "gone") == 0);
  CHECK(pread(again, buffer, 11, 0) == 1);
  CHECK(pread(OpenAt("gone", O_RDONLY), buffer, 11, 0) == 5);
  CHECK(unlink("gone") == 0);
  /* A directory that is removed while it is open lists nothing. */
  CHECK(mkdir("dir", 0755) == 0);
  const int dir = OpenAt("dir", O_RDONLY | O_DIRECTORY);
  CHECK(rmdir("dir") == 0);
  CHECK(openat(dir, "x", O_CREAT | O_RDWR, 0644) < 0);
  return 0;
}

/* names DIR: rename flags, links, long and odd names, errors. */
static int Names(int argc, char** argv) {
  if (argc < 1 || chdir(argv[0]) != 0) return 2;
  close(OpenAt("a", O_CREAT | O_WRONLY));
  close(OpenAt("b", O_CREAT | O_WRONLY));
  struct stat a, b;
  CHECK(stat("a", &a) == 0 && stat("b", &b) == 0);
  CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE) != 0);
  CHECK(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0);
  struct stat now;
  CHECK(stat("a", &now) == 0 && now.st_ino == b.st_ino);
  CHECK(stat("b", &now) == 0 && now.st_ino == a.st_ino);
  CHECK(link("a", "c") == 0);
  CHECK(stat("c", &now) == 0 && now.st_nlink == 2);
  CHECK(symlink("a", "s") == 0);
  char target[8] = {0};
  CHECK(readlink("s", target, sizeof(target)) == 1 && target[0] == 'a');
  CHECK(lstat("s", &now) == 0 && S_ISLNK(now.st_mode));
  CHECK(open("s", O_RDONLY | O_NOFOLLOW) < 0);
  char name[260];
  memset(name, 'n', sizeof(name));
  name[255] = '\0';
  close(OpenAt(name, O_CREAT | O_WRONLY));
  CHECK(unlink(name) == 0);
  name[255] = 'n';
  name[256] = '\0';
  CHECK(open(name, O_CREAT | O_WRONLY, 0644) < 0 && errno == ENAMETOOLONG);
  const char* odd[] = {" ", "a b", "\n", "\xff\xfe", "...", "-rf", "\xc3\xa4"};
  for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); ++i) {
    close(OpenAt(odd[i], O_CREAT | O_EXCL | O_WRONLY));
    CHECK(unlink(odd[i]) == 0);
  }
  CHECK(mkdir("d", 0755) == 0);
  CHECK(mkdir("d", 0755) != 0 && errno == EEXIST);
  CHECK(rmdir("a") != 0 && errno == ENOTDIR);
  CHECK(unlink("d") != 0 && (errno == EISDIR || errno == EPERM));
  CHECK(rename("d", "d/e") != 0 && errno == EINVAL);
  close(OpenAt("d/f", O_CREAT | O_WRONLY));
  CHECK(rmdir("d") != 0 && errno == ENOTEMPTY);
  CHECK(mkfifo("fifo", 0644) == 0);
  CHECK(stat("fifo", &now) == 0 && S_ISFIFO(now.st_mode));
  CHECK(stat("missing", &now) != 0 && errno == ENOENT);
  return 0;
}

/* ranges DIR: holes, fallocate, copy_file_range, append, truncate. */
static int Ranges(int argc, char** argv) {
  if (argc < 1 || chdir(argv[0]) != 0) return 2;
  const int fd = OpenAt("sparse", O_RDWR | O_CREAT | O_TRUNC);
  CHECK(pwrite(fd, "end", 3, 1 << 20) == 3);
  CHECK(lseek(fd, 0, SEEK_DATA) >= 0);
  CHECK(lseek(fd, 0, SEEK_HOLE) >= 0);
  char buffer[16];
  CHECK(pread(fd, buffer, 8, 4096) == 8);
  for (int i = 0; i < 8; ++i) CHECK(buffer[i] == 0);
  struct stat info;
  CHECK(fallocate(fd, 0, 0, 2 << 20) == 0);
  CHECK(fstat(fd, &info) == 0 && info.st_size == 2 << 20);
  CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 1 << 20, 4096) == 0);
  CHECK(pread(fd, buffer, 3, 1 << 20) == 3 && buffer[0] == 0);
  const int from = OpenAt("from", O_RDWR | O_CREAT | O_TRUNC);
  const int to = OpenAt("to", O_RDWR | O_CREAT | O_TRUNC);
  CHECK(write(from, "0123456789", 10) == 10);
  off_t in = 2, out = 0;
  CHECK(copy_file_range(from, &in, to, &out, 5, 0) == 5);
  CHECK(pread(to, buffer, 16, 0) == 5 && memcmp(buffer, "23456", 5) == 0);
  const int append = OpenAt("from", O_WRONLY | O_APPEND);
  CHECK(write(append, "ab", 2) == 2);
  CHECK(pread(from, buffer, 16, 0) == 12 && memcmp(buffer + 10, "ab", 2) == 0);
  CHECK(truncate("from", 4) == 0);
  CHECK(pread(from, buffer, 16, 0) == 4);
  CHECK(posix_fallocate(to, 0, 4096) == 0);
  CHECK(syncfs(to) == 0);
  return 0;
}

/* ---- trees ----------------------------------------------------------------------------------- */

/* File i of a tree ten directories deep, ten wide, then `leaf` files in each last directory. */
static void TreePath(char* path, size_t size, const char* root, long i, int depth) {
  int at = snprintf(path, size, "%s", root);
  long rest = i / 100;
  for (int level = 0; level < depth; ++level) {
    at += snprintf(path + at, size - (size_t)at, "/d%ld", rest % 10);
    rest /= 10;
  }
  snprintf(path + at, size - (size_t)at, "/f%ld", i);
}

static void MakeParents(char* path) {
  for (char* slash = path + 1; (slash = strchr(slash, '/')) != NULL; ++slash) {
    *slash = '\0';
    if (mkdir(path, 0755) != 0 && errno != EEXIST) Fail("mkdir %s", path);
    *slash = '/';
  }
}

/* tree make|check|remove DIR FILES DEPTH */
static int Tree(int argc, char** argv) {
  if (argc < 4) return 2;
  const long files = atol(argv[2]);
  const int depth = atoi(argv[3]);
  char path[4096];
  for (long i = 0; i < files; ++i) {
    TreePath(path, sizeof(path), argv[1], i, depth);
    if (strcmp(argv[0], "make") == 0) {
      /* A hundred files in a row share their directory. */
      if (i % 100 == 0) MakeParents(path);
      const int fd = OpenAt(path, O_CREAT | O_EXCL | O_WRONLY);
      if (i % 100 == 0) CHECK(write(fd, path, strlen(path)) == (ssize_t)strlen(path));
      CHECK(close(fd) == 0);
    } else if (strcmp(argv[0], "check") == 0) {
      struct stat info;
      if (stat(path, &info) != 0) Fail("stat %s", path);
      CHECK(info.st_size == (i % 100 == 0 ? (off_t)strlen(path) : 0));
    } else {
      if (unlink(path) != 0) Fail("unlink %s", path);
    }
  }
  return 0;
}

/* ---- descriptors of the server --------------------------------------------------------------- */

static long entries_seen;

static int CountEntry(const char* path, const struct stat* info, int kind, struct FTW* where) {
  (void)info;
  (void)where;
  if (kind == FTW_NS || kind == FTW_DNR) Fail("%s: not to be had", path);
  ++entries_seen;
  return 0;
}

/* open-many DIR FILES: holds one file open that many times, or as often as it can (ENFILE), and
 * while it does, lists every directory below DIR and looks at every file. Prints how often. */
static int OpenMany(int argc, char** argv) {
  if (argc < 2) return 2;
  const int wanted = atoi(argv[1]);
  char path[4096];
  snprintf(path, sizeof(path), "%s/held-open", argv[0]);
  const int made = OpenAt(path, O_RDWR | O_CREAT);
  CHECK(nftw(argv[0], CountEntry, 4, FTW_PHYS) == 0);
  const long before = entries_seen;
  entries_seen = 0;
  int held = 1;
  for (; held < wanted; ++held) {
    if (open(path, O_RDONLY | O_CLOEXEC) >= 0) continue;
    if (errno != ENFILE) Fail("open %s", path);
    break;
  }
  /* What the guest remembers of the first walk would hide what the server cannot do. */
  const int caches = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
  if (caches >= 0) CHECK(write(caches, "3", 1) == 1);
  CHECK(nftw(argv[0], CountEntry, 4, FTW_PHYS) == 0);
  if (entries_seen != before) Fail("%ld entries, %ld before", entries_seen, before);
  CHECK(write(made, "still", 5) == 5);
  printf("%d\n", held);
  return 0;
}

static const struct {
  const char* name;
  int (*run)(int argc, char** argv);
} kCommands[] = {
    {"lock", LockCommand},
    {"getlk", GetLock},
    {"deadlock", Deadlock},
    {"ofd-close", OfdClose},
    {"mmap-write", MmapWrite},
    {"mmap-check", MmapCheck},
    {"mmap-pair", MmapPair},
    {"append-map", AppendMap},
    {"append-check", AppendCheck},
    {"held-back", HeldBack},
    {"unlinked", Unlinked},
    {"names", Names},
    {"ranges", Ranges},
    {"tree", Tree},
    {"open-many", OpenMany},
};

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (size_t i = 0; argc > 1 && i < sizeof(kCommands) / sizeof(kCommands[0]); ++i) {
    if (strcmp(argv[1], kCommands[i].name) == 0) return kCommands[i].run(argc - 2, argv + 2);
  }
  fprintf(stderr, "usage: fsprobe COMMAND ...\n");
  return 2;
}
