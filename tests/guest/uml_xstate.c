// uml_xstate: lets user-mode Linux run on processors with a large extended state (AMX).
// Preloaded into linux.uml by scripts/lib/guest.sh; single-threaded like its caller.
// User-mode Linux up to 6.12 keeps a task's extended state in a buffer of a fixed size. The host's
// kernel takes back whole states only (PTRACE_SETREGSET fails with EFAULT for less), so that on a
// processor whose state is larger the guest panics in its first process. Here the rest of the state,
// which the guest knows nothing of, is filled in from what the task has.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kLargestState = 64 * 1024 };

static long Trace(long request, pid_t pid, void* address, void* data) {
  return syscall(SYS_ptrace, request, pid, address, data);
}

static long SetWholeState(pid_t pid, void* address, const struct iovec* part) {
  static unsigned char state[kLargestState];
  struct iovec whole = {state, sizeof(state)};
  if (Trace(PTRACE_GETREGSET, pid, address, &whole) != 0) return -1;
  if (part->iov_len >= whole.iov_len) {
    errno = EFAULT;
    return -1;
  }
  memcpy(state, part->iov_base, part->iov_len);
  return Trace(PTRACE_SETREGSET, pid, address, &whole);
}

// The C library's signature; PTRACE_PEEK* return their word through `data` in the system call.
long ptrace(enum __ptrace_request request, ...) {
  va_list arguments;
  va_start(arguments, request);
  const pid_t pid = va_arg(arguments, pid_t);
  void* const address = va_arg(arguments, void*);
  void* const data = va_arg(arguments, void*);
  va_end(arguments);

  if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
    long word = 0;
    if (Trace(request, pid, address, &word) < 0) return -1;
    errno = 0;
    return word;
  }
  const long result = Trace(request, pid, address, data);
  if (result == 0 || errno != EFAULT || request != PTRACE_SETREGSET ||
      (unsigned long)address != NT_X86_XSTATE) {
    return result;
  }
  return SetWholeState(pid, address, data);
}
