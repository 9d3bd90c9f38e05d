// How the guest sees the files of a share that is not shown as it is on the host: their owner,
// mode, device and inode number, and the targets of absolute links. Functions over constant shares;
// all [queue], and never called for a plain share.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_VIEW_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_VIEW_H_

#include <sys/stat.h>

#include <cstddef>

#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/share.h"

namespace virtbay::virtiofs {

// Turns what the host says of a file into what the guest is told. `file` is where more can be read.
void Present(const ThreadIdentity& identity, const Share& share, const FileAt& file,
             struct statx* st);

// The target of a link of the host as the guest is told it: `length` bytes in `target`, which has
// room for `capacity`. The new length, or 0 when it does not fit (ENAMETOOLONG).
size_t LinkToGuest(const Share& share, char* target, size_t length, size_t capacity);
// The target that the guest gives a link, as the host gets it, NUL-terminated in `out`. False: it
// is too long.
bool LinkToHost(const Share& share, const char* target, char* out, size_t capacity);

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_VIEW_H_
