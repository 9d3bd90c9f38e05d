/* fsprobe's commands about locks: POSIX record locks, locks of open file descriptions, flock(2). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fsprobe.h"

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
int LockCommand(int argc, char** argv) {
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
int GetLock(int argc, char** argv) {
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

/* deadlock DIR PROCESSES: each process holds the first byte of its own file and waits for the next
 * one's, in a circle. Exactly one must be told so (EDEADLK); when it lets go, all others get
 * theirs, one after the other. */
int Deadlock(int argc, char** argv) {
  if (argc < 2 || chdir(argv[0]) != 0) return 2;
  const int count = atoi(argv[1]);
  if (count < 2 || count > 64) return 2;
  int* holding = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(holding != MAP_FAILED);
  for (int i = 0; i < count; ++i) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0) continue;
    char own[24], next[24];
    snprintf(own, sizeof(own), "circle%d", i);
    snprintf(next, sizeof(next), "circle%d", (i + 1) % count);
    const int own_fd = OpenAt(own, O_RDWR | O_CREAT);
    const int next_fd = OpenAt(next, O_RDWR | O_CREAT);
    CHECK(Lock(own_fd, "posix", "wr", 0, 1, 0) == 0);
    __atomic_fetch_add(holding, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(holding, __ATOMIC_SEQ_CST) < count) usleep(1000);
    const int error = Lock(next_fd, "posix", "wr", 0, 1, 1);
    _exit(error == 0 ? 0 : error == EDEADLK ? 10 : 11);
  }
  int granted = 0, told = 0;
  for (int i = 0; i < count; ++i) {
    int status = 0;
    CHECK(wait(&status) > 0);
    CHECK(WIFEXITED(status));
    granted += WEXITSTATUS(status) == 0;
    told += WEXITSTATUS(status) == 10;
  }
  if (granted != count - 1 || told != 1) {
    printf("%d of %d got the lock, %d were told of the deadlock\n", granted, count, told);
    return 1;
  }
  return 0;
}

/* Whether another process can have that lock; waits for it if it is told to. */
static int OthersCanHave(const char* path, int wait) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    const int fd = OpenAt(path, O_RDWR);
    _exit(Lock(fd, "ofd", "wr", 0, 10, wait) == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status) == 0;
}

/* ofd-close FILE: a lock of an open file description goes with its last descriptor, whatever other
 * descriptions of the file the process has open. */
int OfdClose(int argc, char** argv) {
  if (argc < 1) return 2;
  const int other = OpenAt(argv[0], O_RDWR | O_CREAT);
  const int first = OpenAt(argv[0], O_RDWR);
  CHECK(Lock(first, "ofd", "wr", 0, 10, 0) == 0);
  CHECK(Lock(other, "ofd", "wr", 20, 10, 0) == 0);
  CHECK(Lock(other, "ofd", "wr", 0, 10, 0) != 0);
  const int second = dup(first);
  CHECK(close(first) == 0);
  CHECK(!OthersCanHave(argv[0], 0));
  CHECK(close(second) == 0);
  CHECK(OthersCanHave(argv[0], 1));
  CHECK(Lock(other, "ofd", "wr", 0, 10, 0) == 0);
  /* The other description's own are still there. */
  const int third = OpenAt(argv[0], O_RDWR);
  CHECK(Lock(third, "ofd", "wr", 25, 1, 0) != 0);
  CHECK(close(other) == 0);
  CHECK(Lock(third, "ofd", "wr", 0, 100, 1) == 0);
  return 0;
}
