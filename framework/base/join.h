// JoinUntil: joins a thread that may not leave the kernel.
// Stateless; called by the thread's owner.
#ifndef VIRTBAY_FRAMEWORK_BASE_JOIN_H_
#define VIRTBAY_FRAMEWORK_BASE_JOIN_H_

#include <pthread.h>

#include <new>
#include <thread>

#include "absl/time/time.h"

namespace virtbay {

// False: it has not ended by then, and is joinable still. Otherwise *thread is no thread any more.
// [any]
inline bool JoinUntil(std::thread* thread, absl::Time deadline) {
  const timespec until = absl::ToTimespec(deadline);
  if (pthread_timedjoin_np(thread->native_handle(), nullptr, &until) != 0) return false;
  // What was joined behind its back must not be joined again.
  new (thread) std::thread();
  return true;
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_JOIN_H_
