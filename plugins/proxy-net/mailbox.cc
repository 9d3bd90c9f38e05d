#include "plugins/proxy-net/mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

namespace virtbay::proxy_net {

Mailbox::Mailbox() : fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

Mailbox::~Mailbox() {
  if (fd_ >= 0) close(fd_);
}

// The lock is held meanwhile: who waits for a job may not give up on one that is being done.
void Mailbox::DoAll(std::unique_lock<std::mutex>& lock) {
  (void)lock;
  for (const std::shared_ptr<Job>& job : jobs_) {
    if (!job->given_up) job->work();
    job->done = true;
  }
  jobs_.clear();
  done_.notify_all();
}

void Mailbox::OnReady() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = read(fd_, &count, sizeof(count));
  std::unique_lock lock(mutex_);
  DoAll(lock);
}

void Mailbox::SetServing(bool serving) {
  std::unique_lock lock(mutex_);
  serving_ = serving;
  serves_.store(serving, std::memory_order_release);
  DoAll(lock);
}

bool Mailbox::RunIfIdle(const std::function<void()>& work) {
  std::unique_lock lock(mutex_);
  if (serving_) return false;
  work();
  return true;
}

bool Mailbox::Run(std::function<void()> work, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  if (!serving_) {
    work();
    return true;
  }
  auto job = std::make_shared<Job>();
  job->work = std::move(work);
  jobs_.push_back(job);
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t n = write(fd_, &one, sizeof(one));
  if (done_.wait_for(lock, patience, [&] { return job->done; })) return true;
  job->given_up = true;
  return false;
}

}  // namespace virtbay::proxy_net
