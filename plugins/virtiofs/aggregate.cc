#include "plugins/virtiofs/aggregate.h"

#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <utility>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

using sdk::Error;
using sdk::Status;

constexpr uint64_t kSecond = 1'000'000'000;

uint64_t RealNow() {
  struct timespec now = {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * kSecond + static_cast<uint64_t>(now.tv_nsec);
}

// One component, and nothing that would break a line of a listing or a log.
Status CheckShareName(const std::string& name) {
  std::string_view checked;
  const int error = CheckName(std::as_bytes(std::span(name.c_str(), name.size() + 1)), &checked);
  bool good = error == 0;
  for (const char c : name) good = good && static_cast<unsigned char>(c) >= 0x20 && c != 0x7f;
  if (good) return {};
  return sdk::InvalidArgument(error == ENAMETOOLONG
                                  ? "the share's name is longer than 255 bytes"
                                  : "the share's name is not one name of a directory entry");
}

bool SameDirectory(const struct statx& a, const struct statx& b) {
  return KeyOf(a) == KeyOf(b) && BirthOf(a) == BirthOf(b);
}

}  // namespace

Aggregate::Aggregate(Fs* fs) : fs_(fs) {
  counter_ = fs->host->Gauge("shares", "shares of an aggregate device");
  Changed();
}

Aggregate::~Aggregate() {
  for (auto& [name, share] : by_name_) share->Unref();
}

// A memory file takes the place of a directory: whatever is done with it by mistake meets an empty
// file and no directory of the host, and the locks of those who have the root open are real ones.
Status Aggregate::OpenRoot(Share* root) {
  const int fd = ::memfd_create("virtiofs-root", MFD_CLOEXEC);
  if (fd < 0) return sdk::Errno(errno, "memfd for the root of the shares");
  return AdoptRoot(root, fd);
}

Status Aggregate::AdoptRoot(Share* root, int fd) {
  root->root_fd = fd;
  if (const int error = StatFd(root->root_fd, &root->root_stat); error != 0) {
    return sdk::Errno(error, "memfd for the root of the shares");
  }
  root->root_mnt_id = KeyOf(root->root_stat).mnt_id;
  root->options.readonly = true;
  root->plain = false;
  root->aggregate = this;
  return {};
}

Aggregate::Progress Aggregate::progress() const {
  return {next_id_, next_cookie_, changed_ns_.load(std::memory_order_relaxed)};
}

std::vector<ShareRef> Aggregate::Shares() const {
  const std::lock_guard<std::mutex> lock(mu_);
  std::vector<ShareRef> shares;
  for (const auto& [cookie, share] : by_cookie_) shares.push_back(ShareRef::Of(share));
  return shares;
}

Status Aggregate::Restore(const Progress& progress, std::span<const ShareRef> shares) {
  const std::lock_guard<std::mutex> lock(mu_);
  const Error wrong = sdk::InvalidArgument("the state's shares do not go together");
  if (progress.next_id == 0 || progress.next_cookie <= kDotDot) return wrong;
  for (const ShareRef& share : shares) {
    if (share->id == 0 || share->id >= progress.next_id) return wrong;
    if (share->removed.load(std::memory_order_relaxed)) continue;
    if (Status status = CheckShareName(share->name); !status.ok()) return status;
    if (Status status = CheckOptions(share->options); !status.ok()) return status;
    if (share->cookie <= kDotDot || share->cookie >= progress.next_cookie ||
        by_name_.contains(share->name) || by_cookie_.contains(share->cookie)) {
      return wrong;
    }
    by_cookie_.emplace(share->cookie, &*share);
    by_name_.emplace(share->name, ShareRef::Of(&*share).Release());
  }
  next_id_ = progress.next_id;
  next_cookie_ = progress.next_cookie;
  changed_ns_.store(progress.changed_ns, std::memory_order_relaxed);
  count_.store(static_cast<uint32_t>(by_name_.size()), std::memory_order_relaxed);
  if (counter_ != nullptr) __atomic_store_n(counter_, count(), __ATOMIC_RELAXED);
  return {};
}

void Aggregate::Changed() {
  // Never the same as before: the guest tells by it whether its copy of the listing is right.
  const uint64_t before = changed_ns_.load(std::memory_order_relaxed);
  changed_ns_.store(std::max(RealNow(), before + 1), std::memory_order_relaxed);
  if (counter_ != nullptr) __atomic_store_n(counter_, count(), __ATOMIC_RELAXED);
}

Status Aggregate::CheckOptions(const ShareOptions& options) const {
  if (options.xattr.value_or(false) && !fs_->options.xattr) {
    // The guest has been told once and for all that there are none.
    return Error{VIRTBAY_FAILED_PRECONDITION, 0,
                 "option xattr: the device as a whole has to have it too"};
  }
  if (fs_->options.readonly && !options.readonly) {
    return Error{VIRTBAY_FAILED_PRECONDITION, 0,
                 "option readonly: the device as a whole is read-only"};
  }
  return fs_->options.CheckShare(options);
}

std::string Aggregate::MakeName() const {
  for (uint64_t number = next_cookie_ - kDotDot;; ++number) {
    std::string name = "share-" + std::to_string(number);
    if (!by_name_.contains(name)) return name;
  }
}

sdk::Result<Aggregate::Added> Aggregate::Add(const std::string& name, const std::string& path,
                                             const ShareOptions& options) {
  if (!name.empty()) {
    if (Status status = CheckShareName(name); !status.ok()) return status.error();
  }
  if (path.empty()) return sdk::InvalidArgument("the share's path is missing");
  if (Status status = CheckOptions(options); !status.ok()) return status.error();
  if (!fs_->budget.ReserveRoot()) {
    return Error{VIRTBAY_RESOURCE_EXHAUSTED, ENFILE,
                 "share " + path + ": the limit on open files leaves none for its guest"};
  }
  ShareRef made = ShareRef::Adopt(new Share);
  Share& share = *made;
  share.id = next_id_++;
  share.budget = &fs_->budget;
  share.name = name;
  if (Status status = share.Open(path, "share " + path, options); !status.ok())
    return status.error();
  share.UseNumbers(fs_->inos.get());

  const std::lock_guard<std::mutex> lock(mu_);
  for (const auto& [other_name, other] : by_name_) {
    if (SameDirectory(other->root_stat, share.root_stat) && other->options == share.options) {
      return Added{other_name, true};
    }
  }
  if (!name.empty() && by_name_.contains(name)) {
    return Error{VIRTBAY_ALREADY_EXISTS, 0,
                 "there is a share " + name + " already, with another path or options"};
  }
  if (by_name_.size() >= fs_->options.max_shares) {
    return Error{VIRTBAY_RESOURCE_EXHAUSTED, 0,
                 "the device has " + std::to_string(by_name_.size()) +
                     " shares, as many as max-shares allows"};
  }
  if (name.empty()) share.name = MakeName();
  share.cookie = next_cookie_++;
  by_cookie_.emplace(share.cookie, &share);
  by_name_.emplace(share.name, made.Release());
  count_.store(static_cast<uint32_t>(by_name_.size()), std::memory_order_relaxed);
  Changed();
  fs_->host->Log(VIRTBAY_LOG_INFO, "share %s: %s%s", share.name.c_str(), path.c_str(),
                 share.options.readonly ? ", read-only" : "");
  return Added{share.name, false};
}

Status Aggregate::Remove(std::string_view name) {
  ShareRef share;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      return Error{VIRTBAY_NOT_FOUND, 0, "there is no share " + std::string(name)};
    }
    share = ShareRef::Adopt(found->second);
    by_cookie_.erase(share->cookie);
    by_name_.erase(found);
    count_.store(static_cast<uint32_t>(by_name_.size()), std::memory_order_relaxed);
  }
  Changed();
  // From here on nothing of it is looked up or opened; then what the guest knows goes, except for
  // what it has open, which goes with its last handle.
  share->removed.store(true, std::memory_order_seq_cst);
  fs_->inodes.DropShare(*share);
  fs_->host->Log(VIRTBAY_LOG_INFO, "share %s: removed", share->name.c_str());
  return {};
}

ShareRef Aggregate::Find(std::string_view name) const {
  const std::lock_guard<std::mutex> lock(mu_);
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? ShareRef() : ShareRef::Of(found->second);
}

size_t Aggregate::Next(uint64_t cookie, std::span<ShareRef> out) const {
  const std::lock_guard<std::mutex> lock(mu_);
  size_t n = 0;
  for (auto it = by_cookie_.upper_bound(cookie); it != by_cookie_.end() && n < out.size(); ++it) {
    out[n++] = ShareRef::Of(it->second);
  }
  return n;
}

void Aggregate::PresentRoot(struct statx* st) const {
  const uint32_t mask = st->stx_mask;
  *st = {};
  st->stx_mask = mask;
  st->stx_ino = InodeTable::kRootId;
  st->stx_mode = S_IFDIR | 0555;
  st->stx_nlink = 2 + count();
  st->stx_blksize = 4096;
  const uint64_t changed = changed_ns_.load(std::memory_order_relaxed);
  const struct statx_timestamp time = {static_cast<int64_t>(changed / kSecond),
                                       static_cast<uint32_t>(changed % kSecond), 0};
  st->stx_atime = st->stx_mtime = st->stx_ctime = st->stx_btime = time;
}

int Aggregate::Sync() const {
  std::array<ShareRef, 32> some;
  std::vector<uint64_t> done;
  int error = 0;
  uint64_t cookie = 0;
  for (size_t n = 0; (n = Next(cookie, some)) != 0;) {
    for (size_t i = 0; i < n; ++i) {
      const Share& share = *some[i];
      cookie = share.cookie;
      const uint64_t dev = KeyOf(share.root_stat).dev;
      if (share.options.readonly || std::find(done.begin(), done.end(), dev) != done.end()) {
        continue;
      }
      done.push_back(dev);
      if (::syncfs(share.root_fd) != 0) error = errno;
    }
  }
  return error;
}

}  // namespace virtbay::virtiofs
