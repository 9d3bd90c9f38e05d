#include "plugins/virtiofs/view.h"

#include <unistd.h>

#include <array>
#include <climits>
#include <cstring>
#include <string_view>

#include "plugins/virtiofs/aggregate.h"
#include "plugins/virtiofs/credentials.h"
#include "plugins/virtiofs/inode.h"

namespace virtbay::virtiofs {
namespace {

// Directories can be entered by whoever can read them.
uint32_t WithSearch(uint32_t mode, bool dir) { return dir ? mode | ((mode & 0444) >> 2) : mode; }

void PresentOwner(const ThreadIdentity& identity, const Share& share, const FileAt& file,
                  struct statx* st) {
  const ShareOptions& o = share.options;
  const uint32_t type = st->stx_mode & S_IFMT;
  const bool dir = type == S_IFDIR;
  Metadata metadata;
  if (o.metadata && (dir || type == S_IFREG)) {
    bool garbled = false;
    metadata = ReadMetadata(identity, file, dir, &garbled);
    if (garbled) share.garbled.store(true, std::memory_order_relaxed);
  }
  st->stx_uid = metadata.uid.value_or(o.default_uid.value_or(o.uid_map.ToGuest(st->stx_uid)));
  st->stx_gid = metadata.gid.value_or(o.default_gid.value_or(o.gid_map.ToGuest(st->stx_gid)));
  if (metadata.mode.has_value()) {
    st->stx_mode = static_cast<uint16_t>(*metadata.mode);
    st->stx_rdev_major = metadata.major;
    st->stx_rdev_minor = metadata.minor;
  } else {
    st->stx_mode = static_cast<uint16_t>(st->stx_mode & ~o.mask_of(st->stx_mode));
  }
  if (o.uid.has_value()) st->stx_uid = *o.uid;
  if (o.gid.has_value()) st->stx_gid = *o.gid;
  if (o.mode.has_value() && type != S_IFLNK) {
    st->stx_mode = static_cast<uint16_t>((st->stx_mode & S_IFMT) | WithSearch(*o.mode, dir));
  }
}

// The guest takes a link's size for the length of its target.
void PresentLinkSize(const Share& share, const FileAt& file, struct statx* st) {
  std::array<char, PATH_MAX> target;
  const char* name = file.name == nullptr ? "" : file.name;
  const ssize_t n = ::readlinkat(file.fd, name, target.data(), target.size());
  if (n <= 0) return;
  const size_t length = LinkToGuest(share, target.data(), static_cast<size_t>(n), target.size());
  if (length != 0) st->stx_size = length;
}

}  // namespace

void Present(const ThreadIdentity& identity, const Share& share, const FileAt& file,
             struct statx* st) {
  if (share.aggregate != nullptr) return share.aggregate->PresentRoot(st);
  const bool link = S_ISLNK(st->stx_mode);
  PresentOwner(identity, share, file, st);
  if (link && !share.options.symlink_root.empty()) PresentLinkSize(share, file, st);
  st->stx_ino = share.Number(KeyOf(*st).dev, st->stx_ino);
}

// Absolute targets are shown below the root; one that the guest itself made absolute is kept with a
// second slash, which means nothing to the host, and is told from the host's own by that.
size_t LinkToGuest(const Share& share, char* target, size_t length, size_t capacity) {
  const std::string_view root = share.options.symlink_root;
  if (root.empty() || length == 0 || target[0] != '/') return length;
  if (length >= 2 && target[1] == '/') {
    std::memmove(target, target + 1, length - 1);
    return length - 1;
  }
  if (root.size() + length > capacity) return 0;
  std::memmove(target + root.size(), target, length);
  std::memcpy(target, root.data(), root.size());
  return root.size() + length;
}

bool LinkToHost(const Share& share, const char* target, char* out, size_t capacity) {
  const std::string_view root = share.options.symlink_root;
  std::string_view text(target);
  const bool absolute = !root.empty() && !text.empty() && text[0] == '/';
  const bool below = absolute && text.size() > root.size() && text.substr(0, root.size()) == root &&
                     text[root.size()] == '/' && text.substr(root.size(), 2) != "//";
  if (below) text.remove_prefix(root.size());
  const size_t extra = absolute && !below ? 1 : 0;
  if (text.size() + extra + 1 > capacity) return false;
  out[0] = '/';
  std::memcpy(out + extra, text.data(), text.size());
  out[extra + text.size()] = '\0';
  return true;
}

}  // namespace virtbay::virtiofs
