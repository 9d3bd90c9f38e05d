#include "framework/device/transfer_helper.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <system_error>

#include "framework/base/clock.h"
#include "framework/memory/payload.h"

namespace virtbay {
namespace {

constexpr uint64_t kSpinNs = 20'000;  // between reads that follow each other
constexpr uint32_t kLooksAlone = 500;
constexpr uint32_t kFirstSamples = 8;
constexpr uint32_t kProbeEvery = 32;  // the other way is tried, more and more rarely
constexpr uint32_t kProbeAtLeastEvery = 256;

constexpr uint64_t Pack(uint32_t job, uint32_t pieces, uint32_t next) {
  return (uint64_t{job} << 32) | (uint64_t{pieces} << 16) | next;
}
constexpr uint32_t JobOf(uint64_t state) { return static_cast<uint32_t>(state >> 32); }
constexpr uint32_t PiecesOf(uint64_t state) { return static_cast<uint32_t>(state >> 16) & 0xffff; }
constexpr uint32_t NextOf(uint64_t state) { return static_cast<uint32_t>(state) & 0xffff; }

bool OneCpu() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) < 2;
}

}  // namespace

TransferHelper::~TransferHelper() {
  if (!thread_.joinable()) return;
  stop_.store(true, std::memory_order_relaxed);
  posted_.fetch_add(1, std::memory_order_release);
  posted_.notify_one();
  thread_.join();
}

bool TransferHelper::Start() {
  if (thread_.joinable()) return true;
  if (unusable_) return false;
  unusable_ = OneCpu();
  if (unusable_) return false;
  try {
    // The queue thread has blocked all signals, which its child takes over.
    thread_ = std::thread([this] { Main(); });
    handle_.store(thread_.native_handle(), std::memory_order_release);
  } catch (const std::system_error&) {
    unusable_ = true;
  }
  return !unusable_;
}

void TransferHelper::Main() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  uint32_t seen = 0;
  for (;;) {
    const uint64_t until = MonotonicNs() + kSpinNs;
    while (posted_.load(std::memory_order_acquire) == seen && MonotonicNs() < until) CpuRelax();
    posted_.wait(seen, std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    seen = posted_.load(std::memory_order_acquire);
    Work(seen);
  }
}

void TransferHelper::Cost::Add(uint64_t ns_per_mib) {
  // A read that was interrupted for long is no worse than a slow one.
  if (samples > 0) ns_per_mib = std::min(ns_per_mib, 2 * mean);
  samples = std::min(samples + 1, kFirstSamples);
  const auto step = static_cast<int64_t>(ns_per_mib) - static_cast<int64_t>(mean);
  mean += static_cast<uint64_t>(step / static_cast<int64_t>(std::min(samples, 4u)));
}

bool TransferHelper::ChooseTogether() {
  if (!Start()) return false;
  if (way_ == Way::kTogether || together_.samples < kFirstSamples) return true;
  if (alone_.samples < kFirstSamples) return false;
  const bool together = together_.mean < alone_.mean;
  if (together != together_last_) probe_every_ = kProbeEvery;
  together_last_ = together;
  if (++since_probe_ < probe_every_) return together;
  // Two in a row: the first one wakes the helper.
  if (since_probe_ > probe_every_) {
    since_probe_ = 0;
    probe_every_ = std::min(2 * probe_every_, kProbeAtLeastEvery);
  }
  return !together;
}

int64_t TransferHelper::Read(int fd, std::span<const iovec> chain, uint32_t offset, uint32_t len,
                             off_t position, int flags) {
  job_ = Job{fd, flags, chain, offset, len, PieceSize(len), position};
  const bool together = ChooseTogether();
  const uint64_t start = MonotonicNs();
  const int64_t n = together ? ReadTogether() : Copy(0, len);
  // What was not all in the page cache says nothing.
  if (n == static_cast<int64_t>(len)) {
    (together ? together_ : alone_).Add((MonotonicNs() - start) * 1024 / (len / 1024));
  }
  return n;
}

int64_t TransferHelper::ReadTogether() {
  const uint32_t pieces = Pieces(job_.len);
  results_.fill(0);
  finished_.store(0, std::memory_order_relaxed);
  const uint32_t job = posted_.load(std::memory_order_relaxed) + 1;
  state_.store(Pack(job, pieces, 0), std::memory_order_release);
  posted_.store(job, std::memory_order_release);
  posted_.notify_one();
  Work(job);
  // The helper is in its last piece, unless the system has put it on this thread's own CPU.
  for (uint32_t looks = 0; finished_.load(std::memory_order_acquire) != pieces; ++looks) {
    if (looks < kLooksAlone) {
      CpuRelax();
    } else {
      sched_yield();
    }
  }
  int64_t total = 0;
  for (uint32_t i = 0; i < pieces; ++i) {
    const int64_t n = results_[i];
    if (n < 0) return total > 0 ? total : n;
    total += n;
    if (n < int64_t{job_.piece}) break;
  }
  return total;
}

void TransferHelper::Work(uint32_t job) {
  for (;;) {
    uint64_t state = state_.load(std::memory_order_acquire);
    do {
      if (JobOf(state) != job || NextOf(state) >= PiecesOf(state)) return;
    } while (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel));
    const uint32_t piece = NextOf(state);
    const uint32_t at = piece * job_.piece;
    const int64_t n = Copy(at, std::min(job_.piece, job_.len - at));
    results_[piece] = n;
    uint32_t finished = 1;
    if (n < static_cast<int64_t>(job_.piece)) {
      // Not cached any further, or the end of the file: nobody needs what comes behind.
      const uint32_t pieces = PiecesOf(state);
      state = state_.exchange(Pack(job, pieces, pieces), std::memory_order_acq_rel);
      finished += pieces - std::min(NextOf(state), pieces);
    }
    finished_.fetch_add(finished, std::memory_order_acq_rel);
  }
}

int64_t TransferHelper::Copy(uint32_t at, uint32_t len) const {
  // Not initialised: only what is filled is touched.
  std::array<iovec, IOV_MAX> segments;
  const size_t count = SliceSegments(job_.chain, job_.offset + at, len, segments);
  if (count == 0) return -ERANGE;
  const ssize_t n =
      preadv2(job_.fd, segments.data(), static_cast<int>(count), job_.position + at, job_.flags);
  return n < 0 ? -errno : n;
}

uint64_t TransferHelper::CpuNs() const {
  const pthread_t handle = handle_.load(std::memory_order_acquire);
  clockid_t clock{};
  timespec now{};
  if (handle == pthread_t{} || pthread_getcpuclockid(handle, &clock) != 0 ||
      clock_gettime(clock, &now) != 0) {
    return 0;
  }
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

}  // namespace virtbay
