// Aggregate: a device that carries many shares, which come and go while it serves. Its root is made
// up: a read-only directory with the shares as its only names, and no directory of the host.
// Owned by Fs; thread tags are at the functions. The lock is never held over a system call.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_AGGREGATE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_AGGREGATE_H_

#include <linux/fuse.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plugins/virtiofs/share.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs {

class Call;
class Fs;

class Aggregate {
 public:
  explicit Aggregate(Fs* fs);
  ~Aggregate();
  Aggregate(const Aggregate&) = delete;
  Aggregate& operator=(const Aggregate&) = delete;

  // [control] Makes the root that stands for no directory of the host.
  sdk::Status OpenRoot(Share* root);

  // [control] The same with the file that stood for it in another generation of the device.
  sdk::Status AdoptRoot(Share* root, int fd);

  // [control] What of it another generation goes on with, beside the shares.
  struct Progress {
    uint32_t next_id = 1;
    uint64_t next_cookie = 0;
    uint64_t changed_ns = 0;
  };
  Progress progress() const;
  // [control] Those that have a name, in the order of their cookies.
  std::vector<ShareRef> Shares() const;
  // [control, before any other use, after AdoptRoot] Takes over shares that are open, some of them
  // removed already. An Error when they do not go together, or with this device.
  sdk::Status Restore(const Progress& progress, std::span<const ShareRef> shares);

  struct Added {
    std::string name;
    bool existing = false;  // an equal share was there before
  };
  // [control] Adds the directory under that name (empty: one is made up), or finds the share with
  // the same directory and options. Errors: INVALID_ARGUMENT (name, options, not a directory),
  // NOT_FOUND and PERMISSION_DENIED (directory), ALREADY_EXISTS (name), RESOURCE_EXHAUSTED (shares,
  // descriptors), FAILED_PRECONDITION (needs an option of the device).
  sdk::Result<Added> Add(const std::string& name, const std::string& path,
                         const ShareOptions& options);
  // [control] The name goes; what the guest has open stays until it is closed. NOT_FOUND.
  sdk::Status Remove(std::string_view name);
  // [control] Commands of VIRTBAY_EXTENSION_CONTROL: `share.add`, `share.remove`, `share.list`.
  // Texts are lines KEY=VALUE: name, path and options of a share. An empty line follows each share
  // of a list.
  sdk::Result<std::string> Control(std::string_view command, std::string_view text);

  // [any] May be empty.
  ShareRef Find(std::string_view name) const;
  // [any] Shares whose cookie is above `cookie`, in that order; how many there are of them in
  // `out`.
  size_t Next(uint64_t cookie, std::span<ShareRef> out) const;
  uint32_t count() const { return count_.load(std::memory_order_relaxed); }
  // [any] The root's attributes.
  void PresentRoot(struct statx* st) const;

  // [queue] Answers what concerns the root, and what would change a read-only share. False: the
  // request goes the usual way.
  bool Take(Call& c, bool modifies) const;
  // [queue] READDIR and READDIRPLUS of the root.
  void ReadRoot(Call& c, bool plus) const;
  // [any, blocks] syncfs(2) for every file system that a share is on: 0 or errno.
  int Sync() const;

 private:
  // The cookies of "." and ".." come first.
  static constexpr uint64_t kDot = 1, kDotDot = 2;

  sdk::Status CheckOptions(const ShareOptions& options) const;
  std::string MakeName() const;  // mu_ held
  void Changed();
  void Lookup(Call& c) const;
  static int EnterShare(Call& c, Share& share, fuse_entry_out* entry);
  sdk::Result<std::string> AddCommand(std::string_view text);
  sdk::Result<std::string> RemoveCommand(std::string_view text);
  std::string ListCommand() const;

  Fs* const fs_;
  uint64_t* counter_ = nullptr;
  uint32_t next_id_ = 1;                // [control]
  uint64_t next_cookie_ = kDotDot + 1;  // [control]; never used again, so that listings are stable
  std::atomic<uint32_t> count_{0};
  std::atomic<uint64_t> changed_ns_{0};  // CLOCK_REALTIME
  mutable std::mutex mu_;
  std::map<std::string, Share*, std::less<>> by_name_;  // guarded by mu_; each has a reference
  std::map<uint64_t, Share*> by_cookie_;                // guarded by mu_
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_AGGREGATE_H_
