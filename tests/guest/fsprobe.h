/* What the parts of fsprobe share: failing with a message, opening or failing, and the commands.
 * A command gets the arguments behind its name and returns the exit status. */
#ifndef VIRTBAY_TESTS_GUEST_FSPROBE_H_
#define VIRTBAY_TESTS_GUEST_FSPROBE_H_

#include <errno.h>

void Fail(const char* format, ...) __attribute__((noreturn, format(printf, 1, 2)));

#define CHECK(condition)                                                         \
  do {                                                                           \
    errno = 0;                                                                   \
    if (!(condition)) Fail("%s:%d: not so: %s", __FILE__, __LINE__, #condition); \
  } while (0)

/* With O_CLOEXEC, and mode 0644 for a file that is made. */
int OpenAt(const char* path, int flags);

/* fsprobe_locks.c */
int LockCommand(int argc, char** argv);
int GetLock(int argc, char** argv);
int Deadlock(int argc, char** argv);
int OfdClose(int argc, char** argv);

/* fsprobe_cache.c */
int MmapWrite(int argc, char** argv);
int MmapCheck(int argc, char** argv);
int MmapPair(int argc, char** argv);
int AppendMap(int argc, char** argv);
int AppendCheck(int argc, char** argv);
int HeldBack(int argc, char** argv);

#endif /* VIRTBAY_TESTS_GUEST_FSPROBE_H_ */
