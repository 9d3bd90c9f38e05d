#include "plugins/virtiofs/metadata.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>

#include "plugins/virtiofs/credentials.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

bool Number(std::string_view text, int base, uint32_t* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out, base);
  return error == std::errc() && end == text.data() + text.size();
}

bool Id(std::string_view text, std::optional<uint32_t>* out) {
  uint32_t id = 0;
  if (out->has_value() || !Number(text, 10, &id) || id == 0xffffffffu) return false;
  *out = id;
  return true;
}

bool FitsType(uint32_t mode, bool dir) {
  if ((mode & ~static_cast<uint32_t>(S_IFMT | 07777)) != 0) return false;
  const uint32_t type = mode & S_IFMT;
  if (dir) return type == S_IFDIR;
  return type == S_IFREG || type == S_IFCHR || type == S_IFBLK || type == S_IFIFO ||
         type == S_IFSOCK;
}

// The path by which the calls for attributes reach a file: through /proc/self/fd, because they
// take no descriptor that was opened with O_PATH.
class AttributePath {
 public:
  AttributePath(const ThreadIdentity& identity, const FileAt& file) : follow_(!file.name) {
    const ThreadIdentity::FdPath fd(identity, file.fd);
    static_cast<void>(std::snprintf(text_.data(), text_.size(), "%s%s%s", fd.c_str(),
                                    follow_ ? "" : "/", follow_ ? "" : file.name));
  }
  ssize_t Get(char* buffer, size_t size) const {
    // The last step of the first form is the descriptor's link, which leads to the file itself.
    return follow_ ? ::getxattr(text_.data(), kMetadataName, buffer, size)
                   : ::lgetxattr(text_.data(), kMetadataName, buffer, size);
  }
  int Set(std::string_view value) const {
    const int result =
        follow_ ? ::setxattr(text_.data(), kMetadataName, value.data(), value.size(), 0)
                : ::lsetxattr(text_.data(), kMetadataName, value.data(), value.size(), 0);
    return result == 0 ? 0 : errno;
  }
  // Of a file that is given by its descriptor.
  int Chmod(mode_t mode) const {
    return ::fchmodat(AT_FDCWD, text_.data(), mode, 0) == 0 ? 0 : errno;
  }

 private:
  const bool follow_;
  std::array<char, 32 + 256> text_;
};

}  // namespace

std::optional<Metadata> Metadata::Parse(std::string_view text, bool dir) {
  Metadata metadata;
  bool device = false;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::string_view part = text.substr(0, comma);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
    const size_t equals = part.find('=');
    if (equals == std::string_view::npos) return std::nullopt;
    const std::string_view key = part.substr(0, equals);
    const std::string_view value = part.substr(equals + 1);
    if (key == "uid") {
      if (!Id(value, &metadata.uid)) return std::nullopt;
    } else if (key == "gid") {
      if (!Id(value, &metadata.gid)) return std::nullopt;
    } else if (key == "mode") {
      uint32_t mode = 0;
      if (metadata.mode.has_value() || !Number(value, 8, &mode) || !FitsType(mode, dir)) {
        return std::nullopt;
      }
      metadata.mode = mode;
    } else if (key == "dev") {
      const size_t colon = value.find(':');
      if (device || colon == std::string_view::npos ||
          !Number(value.substr(0, colon), 10, &metadata.major) ||
          !Number(value.substr(colon + 1), 10, &metadata.minor)) {
        return std::nullopt;
      }
      device = true;
    } else {
      return std::nullopt;
    }
  }
  const uint32_t type = metadata.mode.value_or(0) & S_IFMT;
  if (device != (type == S_IFCHR || type == S_IFBLK)) return std::nullopt;
  return metadata;
}

std::string_view Metadata::Format(Text* text) const {
  char* at = text->data();
  char* const end = at + text->size();
  const auto put = [&](std::string_view key, uint32_t value, int base = 10) {
    at = std::copy(key.begin(), key.end(), at);
    at = std::to_chars(at, end, value, base).ptr;
  };
  if (uid.has_value()) put(",uid=", *uid);
  if (gid.has_value()) put(",gid=", *gid);
  if (mode.has_value()) {
    put(",mode=0", *mode, 8);
    if (S_ISCHR(*mode) || S_ISBLK(*mode)) {
      put(",dev=", major);
      put(":", minor);
    }
  }
  const size_t length = static_cast<size_t>(at - text->data());
  return {text->data() + (length == 0 ? 0 : 1), length == 0 ? 0 : length - 1};
}

Metadata ReadMetadata(const ThreadIdentity& identity, const FileAt& file, bool dir, bool* garbled) {
  Metadata::Text text;
  const ssize_t n = AttributePath(identity, file).Get(text.data(), text.size());
  // Whoever may not read the attribute (or whose file system has none) sees a file without.
  if (n < 0 && errno != ERANGE) return {};
  std::optional<Metadata> metadata;
  if (n >= 0) metadata = Metadata::Parse({text.data(), static_cast<size_t>(n)}, dir);
  if (metadata.has_value()) return *metadata;
  *garbled = true;
  return {};
}

int WriteMetadata(const ThreadIdentity& identity, const FileAt& file, const Metadata& metadata) {
  Metadata::Text text;
  const std::string_view value = metadata.Format(&text);
  const AttributePath path(identity, file);
  int error = path.Set(value);
  // By name it might be another file by now, a link that leads out of the share among them.
  if (error != EACCES || file.name != nullptr) return error;
  struct statx st;
  if (StatFd(file.fd, &st) != 0 || path.Chmod((st.stx_mode & 07777) | S_IWUSR) != 0) return EACCES;
  error = path.Set(value);
  path.Chmod(st.stx_mode & 07777);
  return error;
}

}  // namespace virtbay::virtiofs
