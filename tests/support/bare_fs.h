// BareFs: what the virtiofs plugin serves a directory with, without a device around it: for tests
// of its parts, which act as the queue thread. Its host has options, counts descriptors, and
// nothing else. Owned by the test; one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_BARE_FS_H_
#define VIRTBAY_TESTS_SUPPORT_BARE_FS_H_

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/state/format.h"
#include "plugins/virtiofs/state/state.h"
#include "tests/support/state_parts.h"
#include "virtbay/sdk/host.h"

// The host's side of a BareFs.
struct virtbay_host_device {
  std::map<std::string, std::string> options;
  uint32_t descriptors = 0;                // counted
  uint32_t most_descriptors = UINT32_MAX;  // there are
};

namespace virtbay::testing {

class BareFs {
 public:
  using Options = std::map<std::string, std::string>;
  explicit BareFs(Options options, uint32_t most_descriptors = UINT32_MAX) {
    device_.options = std::move(options);
    device_.most_descriptors = most_descriptors;
    host_ = *sdk::Host::Create(&Table(), &device_);
    fs_ = std::make_unique<virtiofs::Fs>();
    status_ = fs_->Init(&host_);
  }

  bool ok() const { return status_.ok(); }
  std::string problem() const { return status_.ok() ? "" : status_.error().text; }
  virtiofs::Fs& fs() { return *fs_; }
  // Descriptors that the host has counted.
  uint32_t counted() const { return device_.descriptors; }
  void set_most(uint32_t most) { device_.most_descriptors = most; }
  // What the plugin still has when it is gone.
  uint32_t End() {
    fs_.reset();
    return device_.descriptors;
  }

  // As LOOKUP does for the guest; 0: there is no such file.
  uint64_t Lookup(uint64_t parent, const std::string& name) {
    const virtiofs::InodeRef dir = fs_->inodes.Find(parent);
    int error = 0;
    const virtiofs::PathFd fd = fs_->PathOf(*dir, &error);
    struct statx st;
    if (!fd || virtiofs::StatAt(fd.fd(), name.c_str(), &st) != 0) return 0;
    const virtiofs::InodeRef inode = fs_->inodes.Lookup(*dir->share, st);
    fs_->inodes.SetName(*inode, *dir, name);
    return inode->nodeid();
  }
  // As OPEN does; 0: it cannot be opened.
  uint64_t Open(uint64_t node, int flags) {
    virtiofs::InodeRef inode = fs_->inodes.Find(node);
    virtiofs::HandleTraits traits;
    traits.fd = fs_->OpenForIo(*inode, flags);
    if (traits.fd < 0) return 0;
    traits.readable = (flags & O_ACCMODE) != O_WRONLY;
    traits.writable = (flags & O_ACCMODE) != O_RDONLY;
    return fs_->handles.Open(&inode, traits)->fh();
  }
  // As SETLK does: 0 or errno.
  int Lock(uint64_t node, uint64_t fh, uint64_t owner, uint32_t type, uint64_t start,
           uint64_t end) {
    const virtiofs::HandleRef handle = fs_->handles.Find(fh, node);
    return fs_->lock_owners.Set(*fs_, *handle, owner, {start, end, type, 1});
  }

 private:
  static const virtbay_host& Table() {
    static const virtbay_host table = [] {
      virtbay_host host = {};
      host.struct_size = sizeof(host);
      host.abi_major = VIRTBAY_ABI_MAJOR;
      host.abi_minor = VIRTBAY_ABI_MINOR;
      host.service = &Service;
      return host;
    }();
    return table;
  }
  static const void* Service(const virtbay_host* /*host*/, const char* id) {
    static const virtbay_log_service log = [] {
      virtbay_log_service s = {};
      s.struct_size = sizeof(s);
      s.level = [](virtbay_host_device*) { return uint32_t{UINT32_MAX}; };
      return s;
    }();
    static const virtbay_config_service config = [] {
      virtbay_config_service s = {};
      s.struct_size = sizeof(s);
      s.get = [](virtbay_host_device* device, const char* key, char* buffer,
                 uint32_t capacity) -> int32_t {
        const auto found = device->options.find(key);
        if (found == device->options.end()) return -1;
        const size_t n = std::min<size_t>(capacity - 1, found->second.size());
        std::memcpy(buffer, found->second.data(), n);
        buffer[n] = '\0';
        return static_cast<int32_t>(found->second.size());
      };
      s.key = [](virtbay_host_device* device, uint32_t index) -> const char* {
        for (const auto& [key, value] : device->options) {
          if (key.starts_with("host.")) continue;
          if (index-- == 0) return key.c_str();
        }
        return nullptr;
      };
      return s;
    }();
    static const virtbay_metrics_service metrics = [] {
      virtbay_metrics_service s = {};
      s.struct_size = sizeof(s);
      s.counter = s.gauge = [](virtbay_host_device*, const char*, const char*) -> uint64_t* {
        return nullptr;
      };
      return s;
    }();
    static const virtbay_descriptor_service descriptors = [] {
      virtbay_descriptor_service s = {};
      s.struct_size = sizeof(s);
      s.take = [](virtbay_host_device* device, uint32_t) -> uint32_t {
        if (device->descriptors >= device->most_descriptors) return 0;
        ++device->descriptors;
        return 1;
      };
      s.give = [](virtbay_host_device* device) { --device->descriptors; };
      s.keep = [](virtbay_host_device*, int32_t) {};
      return s;
    }();
    // Of the others nothing is called.
    static constexpr uint32_t kNone[64] = {8};
    const std::string_view name(id);
    if (name == VIRTBAY_SERVICE_LOG) return &log;
    if (name == VIRTBAY_SERVICE_CONFIG) return &config;
    if (name == VIRTBAY_SERVICE_METRICS) return &metrics;
    if (name == VIRTBAY_SERVICE_DESCRIPTORS) return &descriptors;
    return kNone;
  }

  virtbay_host_device device_;
  sdk::Host host_;
  std::unique_ptr<virtiofs::Fs> fs_;
  sdk::Status status_;
};

// Restores bytes and duplicates of the descriptors, as the host does; the error's text, or none.
inline std::string RestoreInto(BareFs* to, std::span<const std::byte> bytes,
                               std::span<const virtbay_state_fd> fds) {
  std::vector<virtbay_state_fd> copies;
  for (const virtbay_state_fd& fd : fds) {
    copies.push_back({fd.role, fcntl(fd.fd, F_DUPFD_CLOEXEC, 3)});
  }
  sdk::StateReader reader(virtiofs::state::kVersion, bytes, copies);
  if (!reader.ok()) return "not whole sections";
  const sdk::Status status = virtiofs::RestoreState(to->fs(), &reader);
  return status.ok() ? "" : status.error().text;
}

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_BARE_FS_H_
