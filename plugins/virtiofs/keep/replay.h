// What a request that must not be done twice looks at before it is done, and after a process was
// killed in the middle of it.
// Free functions; [queue].
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REPLAY_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REPLAY_H_

#include <string_view>

#include "plugins/virtiofs/call.h"
#include "plugins/virtiofs/keep/store.h"

namespace virtbay::virtiofs::keep {

// What is under that name now; nothing when it cannot be told. Without a journal: nothing, at no
// cost.
Seen Look(const Call& c, int dir_fd, std::string_view name);

// Before a name is made. Takes away what a killed process has made of the same request: a file of
// that kind, born since, which the guest has never heard of and so cannot have used. The request is
// then done from the beginning. Of LINK (`linked`): true if the name is that inode's already.
bool BeginName(Call& c, int dir_fd, std::string_view name, mode_t type,
               const Inode* linked = nullptr);

// Before a name is removed. True: the process before has removed it, and the tables know.
bool BeginRemoval(Call& c, int dir_fd, std::string_view name);

// Before a rename. True: it was done, and the tables know, see Revive.
bool BeginRename(Call& c, int from_fd, std::string_view from, int to_fd, std::string_view to,
                 bool exchange);

// Before a write to the end of a file: how many of its bytes are there already.
uint32_t BeginAppend(Call& c, int fd, uint32_t size);

// Before a copy from a file: how many bytes of it there are to copy, of `length`, which the copy
// itself may have changed.
uint64_t BeginCopy(Call& c, int fd, uint64_t offset, uint64_t length);

}  // namespace virtbay::virtiofs::keep

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_KEEP_REPLAY_H_
