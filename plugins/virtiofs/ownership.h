// Changes of owner, mode and privilege bits on shares that are not shown as they are on the host,
// and the owner of what the guest makes there.
// Functions over one request; all [queue], and never called for a plain share.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_OWNERSHIP_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_OWNERSHIP_H_

#include <linux/fuse.h>
#include <sys/types.h>

#include <cstdint>

#include "plugins/virtiofs/call.h"
#include "plugins/virtiofs/metadata.h"

namespace virtbay::virtiofs {

// Does what the share keeps by itself of a SETATTR for the file behind `fd`, and leaves in *in what
// is to be done on the host, in the host's terms. 0 or errno.
int ChangeOwnership(Call& c, const Inode& inode, int fd, fuse_setattr_in* in);

// A share whose files carry metadata, on which the guest is about to make something: what it makes
// there is a file or directory of this process's user, and stamped with what the guest means.
inline bool Stamps(const Share& share) { return !share.plain && share.options.metadata; }
// The type and mode that such a thing has on the host.
mode_t StampedMode(mode_t mode);
// Gives the new file `file` in directory `dir` (behind dirfd) its owner, and the mode and device
// number that the guest means. 0 or errno; then the file is to be removed.
int StampNew(Call& c, const Inode& dir, int dirfd, const FileAt& file, mode_t mode, uint32_t rdev);

// Takes set-user-ID and set-group-ID away from the metadata of the file behind `fd`.
int DropPrivilegeBits(Call& c, const Inode& inode, int fd);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_OWNERSHIP_H_
