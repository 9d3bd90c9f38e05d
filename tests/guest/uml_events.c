// uml_events: lets user-mode Linux see every event of its devices, and at once.
// Preloaded into linux.uml by scripts/lib/guest.sh; single-threaded like its caller.
// User-mode Linux goes through the events of one epoll_wait in a buffer that there is one
// of. A handler lets other interrupts in, whose events overwrite the rest of it: a call of a queue
// is then never looked at, and as it was edge-triggered and its driver has not asked for another,
// the guest waits for ever. Here each epoll_wait returns one event, so that there is no rest. Its
// idle loop holds interrupts back, then sleeps until a signal: one that came in between is noted,
// and slept over until the next tick of 10 ms. A device that answers while the guest is about to
// sleep loses a tick with each request. Here it does not sleep while there is an event.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The one epoll instance of the kernel; poll passes over -1. */
static int kernel_epoll = -1;

int epoll_wait(int epoll, struct epoll_event* events, int count, int timeout_ms) {
  kernel_epoll = epoll;
  return (int)syscall(SYS_epoll_wait, epoll, events, count < 1 ? count : 1, timeout_ms);
}

static int Suspend(const sigset_t* mask) { return (int)syscall(SYS_rt_sigsuspend, mask, 8); }

int sigsuspend(const sigset_t* mask) {
  sigset_t io;
  sigset_t before;
  sigemptyset(&io);
  sigaddset(&io, SIGIO);
  /* What comes after the look at the events waits for the suspension, and ends it. */
  sigprocmask(SIG_BLOCK, &io, &before);
  struct pollfd events = {.fd = kernel_epoll, .events = POLLIN};
  int result = -1;
  int error = EINTR;
  if (poll(&events, 1, 0) <= 0) {
    result = Suspend(mask);
    error = errno;
  }
  sigprocmask(SIG_SETMASK, &before, NULL);
  errno = error;
  return result;
}
