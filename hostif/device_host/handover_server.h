// HandoverServer: hands the devices of a Service to the process that asks for them in the state
// directory (docs/restart.md). Owned by RunService; has a thread of its own. What a process asks is
// hostile until it has shown that it is this user's, and may be wrong even then: the devices serve
// on unless the other side has said that it serves them.
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_HANDOVER_SERVER_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_HANDOVER_SERVER_H_

#include <sys/stat.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/service.h"
#include "hostif/handover/channel.h"

namespace virtbay::device_host {

// The socket's name in the state directory.
inline constexpr char kHandoverSocket[] = "handover";

class HandoverServer {
 public:
  // [control] Listens in the state directory that `dir` is open on. `service` outlives it;
  // `on_taken` is called on its thread, once: the devices are another process's.
  static absl::StatusOr<std::unique_ptr<HandoverServer>> Create(int dir, int lock, Service* service,
                                                                std::function<void()> on_taken);
  // [control] Waits for what is still going on, the end of what was let go of included. A process
  // that has taken the devices sees by the end of the conversation that the rest of this one's
  // sockets are free.
  ~HandoverServer();
  HandoverServer(const HandoverServer&) = delete;
  HandoverServer& operator=(const HandoverServer&) = delete;

  // [control] Nobody is listened to any more: one that has only asked is turned away, one for which
  // the devices are stopped comes to its end, within the deadlines of its steps. Returns taken().
  bool Settle();
  // [any] The devices are another process's.
  bool taken() const;
  // [any] That process, once they are.
  pid_t successor() const;

 private:
  HandoverServer(UniqueFd dir, int lock, Service* service, std::function<void()> on_taken)
      : dir_(std::move(dir)), lock_(lock), service_(service), on_taken_(std::move(on_taken)) {}

  enum class Phase {
    kIdle,
    kAsked,  // by a process that the devices do not wait for yet
    kHanding,
    kTaken
  };

  void Loop();
  // OK when the devices are the other process's.
  // `withdrawn` is written when what was handed over is worth nothing any more.
  absl::Status Converse(handover::Channel* channel, pid_t peer, int withdrawn);
  // Unavailable after Settle.
  absl::Status Enter(Phase phase, handover::Channel* channel);

  const UniqueFd dir_;
  const int lock_;
  Service* const service_;
  const std::function<void()> on_taken_;
  UniqueFd listener_;
  UniqueFd wake_;
  std::unique_ptr<handover::Channel> last_;  // with the process that has taken the devices
  mutable absl::Mutex mutex_;
  Phase phase_ ABSL_GUARDED_BY(mutex_) = Phase::kIdle;
  bool settles_ ABSL_GUARDED_BY(mutex_) = false;
  handover::Channel* channel_ ABSL_GUARDED_BY(mutex_) = nullptr;  // while kAsked
  pid_t successor_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_HANDOVER_SERVER_H_
