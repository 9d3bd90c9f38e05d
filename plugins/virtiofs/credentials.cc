#include "plugins/virtiofs/credentials.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace virtbay::virtiofs {
namespace {

constexpr uint32_t kUnchanged = 0xffffffffu;

constexpr uint64_t Bit(int cap) { return uint64_t{1} << cap; }

bool GetCaps(uint64_t* effective, uint64_t* permitted, uint64_t* inheritable) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  *effective = data[0].effective | (static_cast<uint64_t>(data[1].effective) << 32);
  *permitted = data[0].permitted | (static_cast<uint64_t>(data[1].permitted) << 32);
  *inheritable = data[0].inheritable | (static_cast<uint64_t>(data[1].inheritable) << 32);
  return true;
}

// Of the calling thread only: libc's wrappers change every thread of the process.
constexpr ThreadIdentity::Calls kSystem = {
    [](uint32_t user) { return ::syscall(SYS_setresuid, kUnchanged, user, kUnchanged); },
    [](uint32_t group) { return ::syscall(SYS_setresgid, kUnchanged, group, kUnchanged); },
    [](size_t count, const gid_t* groups) { return ::syscall(SYS_setgroups, count, groups); },
    [](void* header, const void* data) { return ::syscall(SYS_capset, header, data); },
};

// CLONE_FS set of another thread's sharing cannot be seen, so ask for a private one always; it is
// no more than a reference count if this is the only user.
bool OwnFsState() { return ::unshare(CLONE_FS) == 0; }

}  // namespace

ThreadIdentity::ThreadIdentity() : ThreadIdentity(&kSystem) {}

void ThreadIdentity::BindSlow(int proc_fd) {
  thread_ = ::pthread_self();
  bound_ = true;
  uid_changed_ = gid_changed_ = groups_changed_ = false;
  uid_ = static_cast<uint32_t>(::syscall(SYS_geteuid));
  gid_ = static_cast<uint32_t>(::syscall(SYS_getegid));
  const int count = ::getgroups(0, nullptr);
  groups_.assign(count > 0 ? static_cast<size_t>(count) : 0, 0);
  if (count > 0 && ::getgroups(count, groups_.data()) < 0) groups_.clear();
  if (!GetCaps(&effective_, &permitted_, &inheritable_)) effective_ = permitted_ = 0;
  may_switch_ = (effective_ & Bit(CAP_SETUID)) != 0 && (effective_ & Bit(CAP_SETGID)) != 0;
  dumpable_ = ::prctl(PR_GET_DUMPABLE) == 1;
  own_fs_ = OwnFsState();
  proc_cwd_ = false;
  if (own_fs_) {
    ::umask(0);
    proc_cwd_ = ::fchdir(proc_fd) == 0;
  }
}

bool ThreadIdentity::SetEffective(uint64_t caps) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  data[0].effective = static_cast<uint32_t>(caps);
  data[1].effective = static_cast<uint32_t>(caps >> 32);
  data[0].permitted = static_cast<uint32_t>(permitted_);
  data[1].permitted = static_cast<uint32_t>(permitted_ >> 32);
  data[0].inheritable = static_cast<uint32_t>(inheritable_);
  data[1].inheritable = static_cast<uint32_t>(inheritable_ >> 32);
  return calls_->set_capabilities(&header, data) == 0;
}

int ThreadIdentity::Become(uint32_t uid, uint32_t gid, std::span<const uint32_t> groups,
                           bool override_dac) {
  auto failed = [this] {
    const int error = errno;
    // Nothing else than "cannot restore" may come out of a failing Restore.
    return Restore() ? error : ENOTRECOVERABLE;
  };
  // Group and groups first: they need capabilities that go with the user.
  if (gid != gid_ && gid != kUnchanged) {
    if (calls_->set_group(gid) != 0) return failed();
    gid_changed_ = true;
  }
  if (!groups.empty()) {
    if (calls_->set_groups(groups.size(), groups.data()) != 0) return failed();
    groups_changed_ = true;
  }
  if (uid != uid_ && uid != kUnchanged) {
    if (calls_->set_user(uid) != 0) return failed();
    uid_changed_ = true;
    if (override_dac && uid_ == 0 && (permitted_ & Bit(CAP_DAC_OVERRIDE)) != 0 &&
        !SetEffective(Bit(CAP_DAC_OVERRIDE))) {
      return failed();
    }
  }
  return 0;
}

bool ThreadIdentity::Restore() {
  const bool changed = uid_changed_ || gid_changed_;
  if (uid_changed_) {
    if (calls_->set_user(uid_) != 0) return false;
    uid_changed_ = false;
    // Going back to user 0 raises everything that is permitted, which may be more than there was.
    if (uid_ == 0 && effective_ != permitted_ && !SetEffective(effective_)) return false;
  }
  if (gid_changed_) {
    if (calls_->set_group(gid_) != 0) return false;
    gid_changed_ = false;
  }
  if (groups_changed_) {
    if (calls_->set_groups(groups_.size(), groups_.data()) != 0) return false;
    groups_changed_ = false;
  }
  // The kernel has made the whole process undumpable, which for a user other than root shuts
  // /proc/self/fd. The real and saved ids were the old ones all the time, so nobody could attach.
  if (changed && dumpable_) ::prctl(PR_SET_DUMPABLE, 1);
  return true;
}

bool ThreadIdentity::DropFsetid() {
  if ((effective_ & Bit(CAP_FSETID)) == 0) return false;
  return SetEffective(effective_ & ~Bit(CAP_FSETID));
}

bool ThreadIdentity::RestoreFsetid() { return SetEffective(effective_); }

ThreadIdentity::FdPath::FdPath(const ThreadIdentity& identity, int fd) : text_{} {
  static_cast<void>(std::snprintf(text_.data(), text_.size(),
                                  identity.proc_cwd_ ? "%d" : "/proc/self/fd/%d", fd));
}

}  // namespace virtbay::virtiofs
