// Tree: the directory that is shared, and calls in it that cannot leave it: every name is a single
// component that is looked up beneath a directory that is open, links are never followed, and
// other mounts are not entered. Errors are negative errno values.
// Owned by the device; [queue], and [control] while no queue runs.
#ifndef VIRTBAY_EXAMPLES_9P_TREE_H_
#define VIRTBAY_EXAMPLES_9P_TREE_H_

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "virtbay/sdk/unique_fd.h"
#include "wire.h"

namespace p9 {

using virtbay::sdk::UniqueFd;

// What a fid names: an inode, and once it was opened a file. Lives until it is clunked and no I/O
// on it is under way.
struct File {
  UniqueFd path;       // O_PATH
  UniqueFd io;         // of an open file or directory
  uint32_t flags = 0;  // it was opened with, 9P's
  uint32_t uid = 0;    // who attached
  uint64_t at = 0;     // where the next getdents of a directory goes on
  uint32_t uses = 1;
};

// A name of one component for a system call: at most kMaxName bytes, no separator, neither "." nor
// "..". Zero, or the errno to answer.
int CheckName(std::string_view name);

class Tree {
 public:
  // [control] 0, or the errno.
  int Open(const std::string& directory);
  const UniqueFd& root() const { return root_; }

  // O_PATH on `name` in the directory, without following it.
  int Walk(const File& directory, std::string_view name) const;
  // The file opened with 9P's flags. Only files and directories: opening anything else does
  // something.
  int Reopen(const File& file, uint32_t flags) const;
  // Makes and opens a file.
  int Create(const File& directory, std::string_view name, uint32_t flags, uint32_t mode) const;
  // "/proc/self/fd/N" of the file's inode.
  static std::string ProcName(const File& file);
  // Owner, where the process may say so, and mode of what was just made: past the process's umask.
  static void Settle(const File& made, uint32_t mode, uint32_t uid, uint32_t gid);

  static Qid QidOf(const struct stat& st);

 private:
  UniqueFd root_;
};

}  // namespace p9

#endif  // VIRTBAY_EXAMPLES_9P_TREE_H_
