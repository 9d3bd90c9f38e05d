// ThreadIdentity: the credentials, umask and working directory of one queue thread.
// Owned by the Worker of that queue and used on its thread only: all of this is per thread in
// Linux, and set with raw system calls because libc would change every thread of the process.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_CREDENTIALS_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_CREDENTIALS_H_

#include <pthread.h>
#include <sys/types.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace virtbay::virtiofs {

class ThreadIdentity {
 public:
  // The system calls that change who the thread is: 0, or -1 with errno.
  struct Calls {
    long (*set_user)(uint32_t effective);
    long (*set_group)(uint32_t effective);
    long (*set_groups)(size_t count, const gid_t* groups);
    long (*set_capabilities)(void* header, const void* data);
  };
  ThreadIdentity();
  // With other calls, for tests of their failure; *calls has to live as long.
  explicit ThreadIdentity(const Calls* calls) : calls_(calls) {}

  // [queue] Reads what this thread is, and gives it a umask (0) and a working directory
  // (/proc/self/fd) of its own. Does nothing when it is bound to this thread already.
  void Bind(int proc_fd) {
    if (bound_ && ::pthread_equal(thread_, ::pthread_self()) != 0) return;
    BindSlow(proc_fd);
  }
  // [control] The next Bind starts anew: another thread may have taken the queue over.
  void Unbind() { bound_ = false; }

  bool may_switch() const { return may_switch_; }
  // The thread's umask is its own and 0.
  bool own_umask() const { return own_fs_; }

  // [queue] Acts as this user, group and supplementary groups until Restore. `override_dac`: the
  // groups are not known, the guest has checked the access. 0 or errno (nothing changed).
  int Become(uint32_t uid, uint32_t gid, std::span<const uint32_t> groups, bool override_dac);
  // [queue] False: the thread is not what it was and must not serve any more.
  bool Restore();

  // [queue] The host's kernel clears set-user-ID and set-group-ID bits on writes of a thread
  // without CAP_FSETID. DropFsetid is true when there is something to restore.
  bool DropFsetid();
  bool RestoreFsetid();

  // [queue] The path by which path-based calls reach a descriptor: relative to the working
  // directory where that is /proc/self/fd, else absolute.
  class FdPath {
   public:
    FdPath(const ThreadIdentity& identity, int fd);
    const char* c_str() const { return text_.data(); }

   private:
    std::array<char, 32> text_;
  };

 private:
  void BindSlow(int proc_fd);
  bool SetEffective(uint64_t caps);

  const Calls* calls_;
  pthread_t thread_ = {};
  bool bound_ = false;
  bool own_fs_ = false;
  bool proc_cwd_ = false;
  bool may_switch_ = false;
  bool dumpable_ = false;
  uint32_t uid_ = 0;
  uint32_t gid_ = 0;
  std::vector<gid_t> groups_;
  uint64_t effective_ = 0;
  uint64_t permitted_ = 0;
  uint64_t inheritable_ = 0;
  bool uid_changed_ = false;
  bool gid_changed_ = false;
  bool groups_changed_ = false;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_CREDENTIALS_H_
