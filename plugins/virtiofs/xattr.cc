#include <sys/stat.h>
#include <sys/xattr.h>

#include <cerrno>

#include "plugins/virtiofs/metadata.h"
#include "plugins/virtiofs/ops.h"
#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

bool IsAcl(std::string_view name) {
  return name == "system.posix_acl_access" || name == "system.posix_acl_default";
}

// Extended attributes of any inode without opening it: the calls take a path, and the entry of an
// O_PATH descriptor in /proc/self/fd leads to the inode itself, symbolic links included.
struct Target {
  InodeRef inode;
  FdUse use;
};

int Resolve(Call& c, Target* target) {
  target->inode = c.Find(c.header().nodeid);
  if (!target->inode) return ESTALE;
  return c.fs.AnyFd(*target->inode, &target->use);
}

// The attribute that every file of the share has by its options.
bool IsGiven(const Share& share, std::string_view name) {
  return !share.options.xattr_name.empty() && name == share.options.xattr_name;
}

// The name of an attribute at the front of `tail`; `rest` is what follows its NUL.
int AttrName(const Fs& fs, std::span<const std::byte> tail, std::string_view* name,
             std::span<const std::byte>* rest) {
  const void* end = tail.empty() ? nullptr : std::memchr(tail.data(), 0, tail.size());
  if (end == nullptr) return tail.size() > XATTR_NAME_MAX ? ERANGE : EINVAL;
  const size_t length = static_cast<size_t>(static_cast<const std::byte*>(end) - tail.data());
  if (length == 0 || length > XATTR_NAME_MAX) return ERANGE;
  *name = {reinterpret_cast<const char*>(tail.data()), length};
  *rest = tail.subspan(length + 1);
  if (IsAcl(*name) && !fs.has(FUSE_POSIX_ACL)) return EOPNOTSUPP;
  return 0;
}

// Takes names out of a list that the guest must not see; returns the new length.
size_t Hide(const Share& share, bool acls, char* list, size_t length) {
  size_t kept = 0;
  for (size_t at = 0; at < length;) {
    const std::string_view name(list + at);
    const size_t size = name.size() + 1;
    if (!IsReservedName(name) && !IsGiven(share, name) && !(acls && IsAcl(name))) {
      std::memmove(list + kept, list + at, size);
      kept += size;
    }
    at += size;
  }
  return kept;
}

// The host's attributes are the guest's.
bool PassesThrough(const Share& share) { return share.options.xattr.value_or(true); }

// 0, or why the guest cannot change that attribute.
int Writable(const Share& share, std::string_view name) {
  if (IsGiven(share, name)) return EPERM;
  return PassesThrough(share) ? 0 : EOPNOTSUPP;
}

// As getxattr(2): what the whole text needs if there is no buffer, -1 with ERANGE if it is small.
ssize_t Copy(std::string_view text, char* buffer, size_t size) {
  if (buffer == nullptr) return static_cast<ssize_t>(text.size());
  if (text.size() > size) {
    errno = ERANGE;
    return -1;
  }
  std::memcpy(buffer, text.data(), text.size());
  return static_cast<ssize_t>(text.size());
}

// Answers a get or list of `wanted` bytes (0: how many there are) with what `read(buffer, size)`
// gives.
template <typename ReadFunction>
void ReplyValue(Call& c, uint32_t wanted, ReadFunction&& read) {
  if (wanted == 0) {
    if (c.room() < sizeof(fuse_getxattr_out)) return c.Error(EINVAL);
    const ssize_t n = read(nullptr, size_t{0});
    if (n < 0) return c.Error(errno);
    return c.Reply(fuse_getxattr_out{static_cast<uint32_t>(n), 0});
  }
  const uint32_t size = std::min({wanted, c.room(), kXattrSizeMax});
  std::byte* body = c.Body(size);
  if (body == nullptr) return c.Error(ENOMEM);
  const ssize_t n = read(reinterpret_cast<char*>(body), size_t{size});
  if (n < 0) return c.Error(errno);
  c.Finish(static_cast<uint32_t>(n));
}

// Before an attribute is made or removed. True: it was not there, or was, when the process before
// began to do the same, and now it is the other way round.
bool BeginAttribute(Call& c, const char* path, std::string_view name) {
  if (!c.journaled()) return false;
  keep::Seen seen;
  if (::getxattr(path, name.data(), nullptr, 0) >= 0) seen.mode = S_IFREG;
  if (const keep::JournalEntry* const before = c.half_done(); before != nullptr) {
    return before->first.there() != seen.there();
  }
  c.Intend(seen);
  return false;
}

}  // namespace

void OpSetxattr(Call& c) {
  // The longer struct only where it was agreed on.
  const bool extended = c.fs.has(FUSE_SETXATTR_EXT);
  const uint32_t fixed = extended ? sizeof(fuse_setxattr_in) : FUSE_COMPAT_SETXATTR_IN_SIZE;
  if (c.arg_bytes() < fixed) return c.Error(EINVAL);
  auto in = c.Arg<fuse_setxattr_in>();
  if (!extended) in.setxattr_flags = 0;
  if (in.size > kXattrSizeMax) return c.Error(E2BIG);
  std::span<const std::byte> tail, value;
  std::string_view name;
  int error = c.Tail(fixed, &tail);
  if (error == 0) error = AttrName(c.fs, tail, &name, &value);
  if (error == 0 && value.size() != in.size) error = EINVAL;
  if (error == 0 && IsReservedName(name)) error = EPERM;
  Target target;
  if (error == 0) error = Resolve(c, &target);
  if (error == 0) error = Writable(*target.inode->share, name);
  if (error != 0) return c.Error(error);
  const ThreadIdentity::FdPath path(c.worker.identity, target.use.fd());
  {
    const bool kill = (in.setxattr_flags & FUSE_SETXATTR_ACL_KILL_SGID) != 0;
    const WithoutFsetid guard(c.fs, c.worker, kill);
    if (BeginAttribute(c, path.c_str(), name) && (in.flags & XATTR_CREATE) != 0) {
      // Made by the process before, which can have set no other value.
    } else if (::setxattr(path.c_str(), name.data(), value.data(), value.size(),
                          static_cast<int>(in.flags)) != 0) {
      error = errno;
    }
  }
  c.Error(c.worker.condemned ? EIO : error);
}

void OpGetxattr(Call& c) {
  const auto in = c.Arg<fuse_getxattr_in>();
  std::span<const std::byte> tail, rest;
  std::string_view name;
  int error = c.Tail(sizeof(in), &tail);
  if (error == 0) error = AttrName(c.fs, tail, &name, &rest);
  if (error == 0 && !rest.empty()) error = EINVAL;
  Target target;
  if (error == 0) error = Resolve(c, &target);
  if (error != 0) return c.Error(error);
  const Share& share = *target.inode->share;
  if (IsReservedName(name)) return c.Error(ENODATA);
  if (IsGiven(share, name)) {
    return ReplyValue(c, in.size, [&](char* buffer, size_t size) {
      return Copy(share.options.xattr_value, buffer, size);
    });
  }
  if (!PassesThrough(share)) return c.Error(ENODATA);
  const ThreadIdentity::FdPath path(c.worker.identity, target.use.fd());
  ReplyValue(c, in.size, [&](char* buffer, size_t size) {
    return ::getxattr(path.c_str(), name.data(), buffer, size);
  });
}

void OpListxattr(Call& c) {
  const auto in = c.Arg<fuse_getxattr_in>();
  Target target;
  if (const int error = Resolve(c, &target); error != 0) return c.Error(error);
  const ThreadIdentity::FdPath path(c.worker.identity, target.use.fd());
  const Share& share = *target.inode->share;
  const std::string& given = share.options.xattr_name;
  const bool acls = !c.fs.has(FUSE_POSIX_ACL);
  ReplyValue(c, in.size, [&](char* buffer, size_t size) {
    // An upper bound is a right answer to "how many": what is left out below counts here.
    ssize_t n = PassesThrough(share) ? ::listxattr(path.c_str(), buffer, size) : 0;
    if (n < 0 && !given.empty() && errno == EOPNOTSUPP) n = 0;
    if (n > 0 && buffer != nullptr) {
      n = static_cast<ssize_t>(Hide(share, acls, buffer, static_cast<size_t>(n)));
    }
    if (n < 0 || given.empty()) return n;
    // With its NUL.
    const ssize_t more =
        Copy({given.c_str(), given.size() + 1}, buffer == nullptr ? nullptr : buffer + n,
             size - (buffer == nullptr ? 0 : static_cast<size_t>(n)));
    return more < 0 ? more : n + more;
  });
}

void OpRemovexattr(Call& c) {
  std::span<const std::byte> tail, rest;
  std::string_view name;
  int error = c.Tail(0, &tail);
  if (error == 0) error = AttrName(c.fs, tail, &name, &rest);
  if (error == 0 && !rest.empty()) error = EINVAL;
  if (error == 0 && IsReservedName(name)) error = ENODATA;
  Target target;
  if (error == 0) error = Resolve(c, &target);
  if (error == 0) error = Writable(*target.inode->share, name);
  if (error != 0) return c.Error(error);
  const ThreadIdentity::FdPath path(c.worker.identity, target.use.fd());
  if (BeginAttribute(c, path.c_str(), name)) return c.Ok();
  c.Error(::removexattr(path.c_str(), name.data()) == 0 ? 0 : errno);
}

}  // namespace virtbay::virtiofs
