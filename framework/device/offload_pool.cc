#include "framework/device/offload_pool.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace virtbay {

OffloadPool::OffloadPool(std::string name, uint32_t max_threads, absl::Duration idle_life)
    : name_(std::move(name)), max_threads_(max_threads), idle_life_(idle_life) {}

OffloadPool::~OffloadPool() {
  std::vector<std::thread> threads;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    threads.swap(threads_);
  }
  for (std::thread& thread : threads) thread.join();
}

bool OffloadPool::Run(absl::AnyInvocable<void()> work) {
  std::vector<std::thread> ended;
  bool accepted = true;
  {
    absl::MutexLock lock(&mutex_);
    work_.push_back(std::move(work));
    for (const std::thread::id id : ended_) {
      auto it = std::find_if(threads_.begin(), threads_.end(),
                             [&](const std::thread& t) { return t.get_id() == id; });
      if (it == threads_.end()) continue;
      ended.push_back(std::move(*it));
      threads_.erase(it);
    }
    ended_.clear();
    if (work_.size() > idle_ && alive_ < max_threads_) {
      try {
        threads_.emplace_back([this] { ThreadMain(); });
        ++alive_;
      } catch (const std::system_error&) {
        // With at least one thread alive the work only waits longer.
        if (alive_ == 0) {
          work_.pop_back();
          accepted = false;
        }
      }
    }
  }
  for (std::thread& thread : ended) thread.join();
  return accepted;
}

bool OffloadPool::Drain(absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(this, &OffloadPool::Quiet), timeout);
}

void OffloadPool::LeaveBehind() {
  std::deque<absl::AnyInvocable<void()>> dropped;  // destroyed without the lock
  absl::MutexLock lock(&mutex_);
  stays_ = true;
  stopping_ = true;
  dropped.swap(work_);
}

void OffloadPool::ThreadMain() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  absl::MutexLock lock(&mutex_);
  for (;;) {
    ++idle_;
    mutex_.AwaitWithTimeout(absl::Condition(this, &OffloadPool::HasWorkOrStops), idle_life_);
    --idle_;
    if (work_.empty()) break;  // stopping, or idle for long enough
    absl::AnyInvocable<void()> work = std::move(work_.front());
    work_.pop_front();
    mutex_.Unlock();
    work();
    work = nullptr;
    mutex_.Lock();
  }
  if (stays_) {
    mutex_.Unlock();
    for (;;) pause();
  }
  --alive_;
  ended_.push_back(std::this_thread::get_id());
}

}  // namespace virtbay
