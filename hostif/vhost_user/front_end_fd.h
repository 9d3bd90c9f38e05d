// What a front-end's descriptors may be. It shares each open file, and can hold its locks, fill it
// and hide others in its queue; so only those kinds are kept with which none of that holds this
// process up. Nothing here waits for anybody or asks a file system that somebody else serves.
// Free functions; any thread.
#ifndef VIRTBAY_HOSTIF_VHOST_USER_FRONT_END_FD_H_
#define VIRTBAY_HOSTIF_VHOST_USER_FRONT_END_FD_H_

#include <sys/types.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace virtbay::vhost_user {

// A kick is read: an eventfd and nothing else, the lock of every other kind can be held by its
// other users while they sleep. InvalidArgument with what it is, FailedPrecondition without /proc.
absl::Status CheckKickFd(int fd);

// A call or an error descriptor is written: an eventfd, or a socket as CheckOneWaySocket wants it.
absl::Status CheckCallFd(int fd);

// One end of a pair of Unix stream sockets that is written and never read: from here on nothing can
// come in at it, and nothing is in its queue (a descriptor there would be closed with it, or would
// keep its other end from ever being). InvalidArgument for any other socket, of which one that is
// connected to a listening socket may be our own.
absl::Status CheckOneWaySocket(int fd);

// Guest memory: a memfd or a file of a file system that this machine's kernel serves by itself; of
// another one every page may be waited for without an end. InvalidArgument with the type.
absl::Status CheckMemoryFd(int fd);

// The close of `fd`, if it is the last one, waits for nobody. Takes a Unix socket's reading side.
bool ClosesAtOnce(int fd);

// The type of the file system at mount `mount_id` by the text of /proc/self/mountinfo; where the
// mount is none of this process's, that of device `device`. Empty: neither is there.
absl::string_view FileSystemType(absl::string_view mountinfo, int mount_id, dev_t device);

}  // namespace virtbay::vhost_user

#endif  // VIRTBAY_HOSTIF_VHOST_USER_FRONT_END_FD_H_
