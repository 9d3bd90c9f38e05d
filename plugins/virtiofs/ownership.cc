#include "plugins/virtiofs/ownership.h"

#include <sys/stat.h>

#include <cerrno>

#include "plugins/virtiofs/path.h"
#include "plugins/virtiofs/view.h"

namespace virtbay::virtiofs {
namespace {

// What chown(2) and a write by somebody without privileges do to a mode.
uint32_t WithoutPrivileges(uint32_t mode) {
  mode &= ~static_cast<uint32_t>(S_ISUID);
  if ((mode & S_IXGRP) != 0) mode &= ~static_cast<uint32_t>(S_ISGID);
  return mode;
}

bool CarriesMetadata(const Inode& inode) { return inode.is_regular() || inode.is_dir(); }

int ChangeMetadata(Call& c, const Inode& inode, int fd, const fuse_setattr_in& in) {
  const ShareOptions& o = inode.share->options;
  const ThreadIdentity& identity = c.worker.identity;
  bool garbled = false;
  const Metadata before = ReadMetadata(identity, {fd}, inode.is_dir(), &garbled);
  Metadata after = before;
  if ((in.valid & FATTR_MODE) != 0 && !o.mode.has_value()) {
    const uint32_t type = before.mode.value_or(static_cast<uint32_t>(inode.type) << 12) & S_IFMT;
    after.mode = type | (in.mode & 07777);
  }
  const bool owner = (in.valid & (FATTR_UID | FATTR_GID)) != 0;
  if ((in.valid & FATTR_UID) != 0 && !o.uid.has_value()) after.uid = in.uid;
  if ((in.valid & FATTR_GID) != 0 && !o.gid.has_value()) after.gid = in.gid;
  if (owner && !inode.is_dir()) {
    if (!after.mode.has_value()) {
      struct statx st;
      if (const int error = StatFd(fd, &st); error != 0) return error;
      Present(identity, *inode.share, {fd}, &st);
      if (WithoutPrivileges(st.stx_mode) != st.stx_mode) after.mode = st.stx_mode;
    }
    if (after.mode.has_value()) after.mode = WithoutPrivileges(*after.mode);
  }
  return after == before ? 0 : WriteMetadata(identity, {fd}, after);
}

}  // namespace

int ChangeOwnership(Call& c, const Inode& inode, int fd, fuse_setattr_in* in) {
  const ShareOptions& o = inode.share->options;
  if (o.metadata && CarriesMetadata(inode)) {
    const int error = ChangeMetadata(c, inode, fd, *in);
    in->valid &= ~static_cast<uint32_t>(FATTR_MODE | FATTR_UID | FATTR_GID);
    return error;
  }
  if ((in->valid & FATTR_MODE) != 0 && !inode.is_symlink()) {
    const uint32_t mask = o.mask_of(static_cast<mode_t>(inode.type) << 12);
    if (o.mode.has_value()) {
      in->valid &= ~static_cast<uint32_t>(FATTR_MODE);
    } else if (mask != 0) {
      // Bits that the guest is not shown are not its to change.
      struct statx st;
      if (const int error = StatFd(fd, &st); error != 0) return error;
      in->mode = (in->mode & ~mask) | (st.stx_mode & mask);
    }
  }
  // An owner that the share gives its files cannot be changed; as in DrvFs that is no error.
  const bool keeps_uid = o.metadata || o.uid.has_value() || o.default_uid.has_value();
  const bool keeps_gid = o.metadata || o.gid.has_value() || o.default_gid.has_value();
  if (keeps_uid) in->valid &= ~static_cast<uint32_t>(FATTR_UID);
  if (keeps_gid) in->valid &= ~static_cast<uint32_t>(FATTR_GID);
  if ((in->valid & FATTR_UID) != 0 && !o.uid_map.ToHost(in->uid, &in->uid)) return EPERM;
  if ((in->valid & FATTR_GID) != 0 && !o.gid_map.ToHost(in->gid, &in->gid)) return EPERM;
  return 0;
}

// The guest's users are nobody on the host, so nobody but this process's user has access there.
mode_t StampedMode(mode_t mode) { return S_ISDIR(mode) ? 0700 : S_IFREG | 0600; }

int StampNew(Call& c, const Inode& dir, int dirfd, const FileAt& file, mode_t mode, uint32_t rdev) {
  const Share& share = *dir.share;
  const ShareOptions& o = share.options;
  const ThreadIdentity& identity = c.worker.identity;
  struct statx parent;
  if (const int error = StatFd(dirfd, &parent); error != 0) return error;
  Present(identity, share, {dirfd}, &parent);
  const bool inherits = (parent.stx_mode & S_ISGID) != 0;
  Metadata metadata;
  const fuse_in_header& caller = c.header();
  if (!o.uid.has_value() && caller.uid != kInvalidId) metadata.uid = caller.uid;
  if (!o.gid.has_value() && caller.gid != kInvalidId) metadata.gid = caller.gid;
  if (!o.gid.has_value() && inherits) metadata.gid = parent.stx_gid;
  if (S_ISDIR(mode) && inherits) mode |= S_ISGID;
  metadata.mode = mode;
  if (S_ISCHR(mode) || S_ISBLK(mode)) {
    metadata.major = DecodeMajor(rdev);
    metadata.minor = DecodeMinor(rdev);
  }
  return WriteMetadata(identity, file, metadata);
}

int DropPrivilegeBits(Call& c, const Inode& inode, int fd) {
  if (!inode.is_regular()) return 0;
  bool garbled = false;
  Metadata metadata = ReadMetadata(c.worker.identity, {fd}, false, &garbled);
  if (!metadata.mode.has_value()) return 0;
  const uint32_t less = WithoutPrivileges(*metadata.mode);
  if (less == *metadata.mode) return 0;
  metadata.mode = less;
  return WriteMetadata(c.worker.identity, {fd}, metadata);
}

}  // namespace virtbay::virtiofs
