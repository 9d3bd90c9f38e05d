// Mailbox: tasks that other threads leave for a queue thread, taken at a burst boundary.
// Shared by the thread and whoever may still post when it has ended (offloaded work); Post is
// [any], the rest [queue].
#ifndef VIRTBAY_FRAMEWORK_DEVICE_MAILBOX_H_
#define VIRTBAY_FRAMEWORK_DEVICE_MAILBOX_H_

#include <atomic>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "framework/io/loop.h"

namespace virtbay {

class Mailbox {
 public:
  using Task = absl::AnyInvocable<void()>;

  // `loop` is woken by Post until Close.
  explicit Mailbox(Loop* loop) : loop_(loop) {}

  // False when the thread has ended: the task is dropped.
  bool Post(Task task) {
    absl::MutexLock lock(&mutex_);
    if (loop_ == nullptr) return false;
    tasks_.push_back(std::move(task));
    waiting_.store(true, std::memory_order_seq_cst);
    loop_->Wake();
    return true;
  }

  bool waiting() const { return waiting_.load(std::memory_order_seq_cst); }

  std::vector<Task> Take() {
    waiting_.store(false, std::memory_order_seq_cst);
    std::vector<Task> tasks;
    absl::MutexLock lock(&mutex_);
    tasks.swap(tasks_);
    return tasks;
  }

  void Close() {
    std::vector<Task> dropped;
    absl::MutexLock lock(&mutex_);
    loop_ = nullptr;
    dropped.swap(tasks_);
  }

 private:
  std::atomic<bool> waiting_{false};
  absl::Mutex mutex_;
  Loop* loop_ ABSL_GUARDED_BY(mutex_);
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_DEVICE_MAILBOX_H_
