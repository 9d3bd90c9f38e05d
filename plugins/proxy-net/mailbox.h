// Mailbox: work that the control thread has done by the thread of a queue pair, and whose end it
// waits for. While that thread does not serve the pair, the control thread does it itself.
// Owned by the device. A queue thread takes no lock unless there is something in it.
#ifndef VIRTBAY_PLUGINS_PROXY_NET_MAILBOX_H_
#define VIRTBAY_PLUGINS_PROXY_NET_MAILBOX_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace virtbay::proxy_net {

class Mailbox {
 public:
  Mailbox();
  ~Mailbox();
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;

  // [queue] Readable when there is work; -1: there was no descriptor.
  int fd() const { return fd_; }
  // [queue] Does what there is.
  void OnReady();
  // [queue] The thread begins or ends to serve; ending does what is left.
  void SetServing(bool serving);
  // [any] Whether it serves.
  bool serving() const { return serves_.load(std::memory_order_acquire); }
  // [any] Does `work` now, and keeps the thread from beginning to serve meanwhile. False: it
  // serves, and nothing was done.
  bool RunIfIdle(const std::function<void()>& work);

  // [control] Has `work` done and waits for it, at most `patience`. False: it was not done in time,
  // and will not be.
  bool Run(std::function<void()> work,
           std::chrono::milliseconds patience = std::chrono::milliseconds(5000));

 private:
  struct Job {
    std::function<void()> work;
    bool done = false;
    bool given_up = false;
  };
  void DoAll(std::unique_lock<std::mutex>& lock);

  int fd_ = -1;
  std::mutex mutex_;
  std::condition_variable done_;
  std::vector<std::shared_ptr<Job>> jobs_;
  bool serving_ = false;
  std::atomic<bool> serves_{false};  // the same, to be looked at without the lock
};

}  // namespace virtbay::proxy_net

#endif  // VIRTBAY_PLUGINS_PROXY_NET_MAILBOX_H_
