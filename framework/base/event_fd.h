// Event descriptors that the other side has made and shares: eventfds, pipes and sockets. Its
// process can change their flags and fill them at any time, so none of this relies on O_NONBLOCK
// being set.
// Free functions over descriptors of the caller's; any thread.
#ifndef VIRTBAY_FRAMEWORK_BASE_EVENT_FD_H_
#define VIRTBAY_FRAMEWORK_BASE_EVENT_FD_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace virtbay {

enum class EventFdKind : uint8_t { kEventFd, kPipe, kSocket };

// What `fd` is, by the name that the kernel gives it; InvalidArgument for anything else: nobody
// knows how long a write to it or its last close takes. FailedPrecondition without /proc. Asks no
// file system, which may never answer, and takes no lock that a user of `fd` can hold. [any]
absl::StatusOr<EventFdKind> EventFdKindOf(int fd);

// Writes `data` to a pipe or socket and never waits, whatever its flags: the bytes written, or -1
// with errno (EAGAIN: it is full). `data` must never change, a pipe refers to it until it is read.
// [any]
ssize_t WriteNow(EventFdKind kind, int fd, std::span<const std::byte> data);

// A write to the eventfd would wait now, unless it is not to. [any]
bool IsFull(int fd);

// Takes what an eventfd holds and never waits, so that whoever waits for room in it goes on. [any]
void DrainEventFd(int fd);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_EVENT_FD_H_
