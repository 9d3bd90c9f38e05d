// uml_events: lets user-mode Linux see every event of its devices.
// Preloaded into linux.uml by scripts/lib/guest.sh; single-threaded like its caller.
// User-mode Linux goes through the events of one epoll_wait in a buffer that there is one
// of. A handler lets other interrupts in, whose events overwrite the rest of it: a call of a queue is
// then never looked at, and as it was edge-triggered and its driver has not asked for another, the
// guest waits for ever. Here each epoll_wait returns one event, so that there is no rest.
#define _GNU_SOURCE
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

int epoll_wait(int epoll, struct epoll_event* events, int count, int timeout_ms) {
  return (int)syscall(SYS_epoll_wait, epoll, events, count < 1 ? count : 1, timeout_ms);
}
