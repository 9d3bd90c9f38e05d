/* fsprobe: small file-system probes that the guest's scripts cannot do with ordinary tools.
 * Each prints what went wrong and exits 0 (as it should be), 1 (not) or 2 (usage).
 * Single-threaded; runs inside the guest and on the host. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void Fail(const char* format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void Fail(const char* format, ...) {
  const int error = errno;
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf(" (errno %d: %s)\n", error, strerror(error));
  exit(1);
}

#define CHECK(condition)                                                         \
  do {                                                                           \
    errno = 0;                                                                   \
    if (!(condition)) Fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition); \
  } while (0)

static int OpenAt(const char* path, int flags) {
  const int fd = open(path, flags | O_CLOEXEC, 0644);
  if (fd < 0) Fail("open %s", path);
  return fd;
}

/* ---- locks ---------------------------------------------------------------------------------- */

/* One lock of a kind on a range; 0, or the errno. */
static int Lock(int fd, const char* kind, const char* type, long start, long length, int wait) {
  const int write = strcmp(type, "wr") == 0;
  if (strcmp(kind, "flock") == 0) {
    return flock(fd, (write ? LOCK_EX : LOCK_SH) | (wait ? 0 : LOCK_NB)) == 0 ? 0 : errno;
  }
  struct flock lock;
  memset(&lock, 0, sizeof(lock));
  lock.l_type = write ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = length;
  const int ofd = strcmp(kind, "ofd") == 0;
  const int command = ofd ? (wait ? F_OFD_SETLKW : F_OFD_SETLK) : (wait ? F_SETLKW : F_SETLK);
  return fcntl(fd, command, &lock) == 0 ? 0 : errno;
}

/* lock FILE KIND TYPE START LENGTH [wait] [-- COMMAND...]: takes the lock, runs the command under
 * it. Exit status 1 when the lock is another's, else the command's. */
static int LockCommand(int argc, char** argv) {
  if (argc < 5) return 2;
  int next = 5;
  const int wait = argc > next && strcmp(argv[next], "wait") == 0;
  if (wait) ++next;
  const int fd = OpenAt(argv[0], O_RDWR | O_CREAT);
  const int error = Lock(fd, argv[1], argv[2], atol(argv[3]), atol(argv[4]), wait);
  if (error != 0) {
    printf("lock refused: %s\n", strerror(error));
    return error == EAGAIN || error == EACCES ? 1 : 3;
  }
  if (argc <= next + 1) return 0;
  const pid_t child = fork();
  if (child == 0) {
    execvp(argv[next + 1], argv + next + 1);
    _exit(127);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* getlk FILE TYPE START LENGTH: prints "free", or the kind of lock in the way. */
static int GetLock(int argc, char** argv) {
  if (argc < 4) return 2;
  const int fd = OpenAt(argv[0], O_RDWR);
  struct flock lock;
  memset(&lock, 0, sizeof(lock));
  lock.l_type = strcmp(argv[1], "wr") == 0 ? F_WRLCK : F_RDLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = atol(argv[2]);
  lock.l_len = atol(argv[3]);
  CHECK(fcntl(fd, F_GETLK, &lock) == 0);
  puts(lock.l_type == F_UNLCK ? "free" : lock.l_type == F_WRLCK ? "wr" : "rd");
  return 0;
}

/* ---- mmap ----------------------------------------------------------------------------------- */

/* mmap-write FILE BYTES TEXT: puts TEXT at every page through a shared mapping. */
static int MmapWrite(int argc, char** argv) {
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
static int MmapCheck(int argc, char** argv) {
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
static int MmapPair(int argc, char** argv) {
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

static const struct {
  const char* name;
  int (*run)(int argc, char** argv);
} kCommands[] = {
    {"lock", LockCommand},     {"getlk", GetLock},      {"mmap-write", MmapWrite},
    {"mmap-check", MmapCheck}, {"mmap-pair", MmapPair}, {"unlinked", Unlinked},
    {"names", Names},          {"ranges", Ranges},      {"tree", Tree},
};

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (size_t i = 0; argc > 1 && i < sizeof(kCommands) / sizeof(kCommands[0]); ++i) {
    if (strcmp(argv[1], kCommands[i].name) == 0) return kCommands[i].run(argc - 2, argv + 2);
  }
  fprintf(stderr, "usage: fsprobe COMMAND ...\n");
  return 2;
}
