#include <sys/stat.h>

#include <cerrno>

#include "plugins/virtiofs/ops.h"

namespace virtbay::virtiofs {

namespace {

// The caller as the host knows it. False: a number that the guest may not use. A supplementary
// group of that kind is left out.
bool ToHost(const ShareOptions& o, uint32_t* uid, uint32_t* gid,
            std::array<uint32_t, Call::kMaxGroups>* groups, size_t* count) {
  if (*uid != kInvalidId && !o.uid_map.ToHost(*uid, uid)) return false;
  if (*gid != kInvalidId && !o.gid_map.ToHost(*gid, gid)) return false;
  size_t kept = 0;
  for (size_t i = 0; i < *count; ++i) {
    if (o.gid_map.ToHost((*groups)[i], &(*groups)[kept])) ++kept;
  }
  *count = kept;
  return true;
}

}  // namespace

void Condemn(const Fs& fs, Worker& worker) {
  if (worker.condemned) return;
  worker.condemned = true;
  fs.host->CondemnThread(worker.queue,
                         "this thread could not take its own credentials back after acting as a "
                         "user of the guest");
}

mode_t AsCaller::ModeFor(const Call& c, uint32_t mode, uint32_t umask) {
  mode &= 07777;
  // Without DONT_MASK the guest has applied the umask itself. With it the host's kernel applies it
  // (where there is no default ACL), if this thread may have a umask of its own.
  if (c.fs.has(FUSE_DONT_MASK) && !c.worker.identity.own_umask()) mode &= ~(umask & 0777);
  return mode;
}

int AsCaller::Enter(Call& c, const Share& share, uint32_t umask) {
  call_ = &c;
  ThreadIdentity& identity = c.worker.identity;
  if (c.fs.has(FUSE_DONT_MASK) && identity.own_umask() && (umask & 0777) != 0) {
    ::umask(umask & 0777);
    umask_set_ = true;
  }
  std::array<uint32_t, Call::kMaxGroups> groups;
  size_t count = 0;
  if (const int error = c.Groups(&groups, &count); error != 0) return error;
  uint32_t uid = c.header().uid, gid = c.header().gid;
  if (!share.plain) {
    if (share.options.owns_files()) return 0;
    if (!ToHost(share.options, &uid, &gid, &groups, &count)) return EPERM;
  }
  if (!identity.may_switch()) {
    c.fs.WarnOnce(
        &c.fs.said_no_switch,
        "no CAP_SETUID and CAP_SETGID: what the guest creates belongs to the user of this "
        "process");
    return 0;
  }
  // A guest that can send groups sends those that matter. One that cannot has checked the access
  // itself, possibly by a group that is not known here.
  const bool override_dac = !c.fs.has(kInitCreateSuppGroup);
  const int error =
      identity.Become(uid, gid, std::span<const uint32_t>(groups.data(), count), override_dac);
  if (error == ENOTRECOVERABLE) {
    Condemn(c.fs, c.worker);
    return EIO;
  }
  if (error == EINVAL || error == EPERM) {
    // A user namespace without this user, or a policy of the host.
    c.fs.WarnOnce(&c.fs.said_no_switch,
                  "the host refuses a user or group of the guest: what it creates belongs to the "
                  "user of this process");
    return 0;
  }
  switched_ = error == 0;
  return error;
}

bool AsCaller::Leave(Call& c) {
  if (umask_set_) ::umask(0);
  umask_set_ = false;
  if (switched_ && !c.worker.identity.Restore()) {
    switched_ = false;
    Condemn(c.fs, c.worker);
    return false;
  }
  switched_ = false;
  return true;
}

AsCaller::~AsCaller() {
  if (call_ != nullptr) Leave(*call_);
}

WithoutFsetid::WithoutFsetid(Fs& fs, Worker& worker, bool wanted)
    : fs_(fs), worker_(worker), dropped_(wanted && worker.identity.DropFsetid()) {}

WithoutFsetid::~WithoutFsetid() {
  if (dropped_ && !worker_.identity.RestoreFsetid()) Condemn(fs_, worker_);
}

}  // namespace virtbay::virtiofs
