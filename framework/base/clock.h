// Monotonic time in nanoseconds.
// Stateless; [any].
#ifndef VIRTBAY_FRAMEWORK_BASE_CLOCK_H_
#define VIRTBAY_FRAMEWORK_BASE_CLOCK_H_

#include <time.h>

#include <cstdint>

namespace virtbay {

// CLOCK_MONOTONIC, about 20 ns through the vDSO.
inline uint64_t MonotonicNs() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// A clock for "is it about time?" on hot paths: a tenth of MonotonicNs' price, no fixed unit.
// kCoarseTicksPer20Us is 20 us within a factor of two on any x86 of the last ten years.
#if defined(__x86_64__)
inline uint64_t CoarseTicks() { return __builtin_ia32_rdtsc(); }
inline constexpr uint64_t kCoarseTicksPer20Us = 50'000;
#else
inline uint64_t CoarseTicks() { return MonotonicNs(); }
inline constexpr uint64_t kCoarseTicksPer20Us = 20'000;
#endif

// CPU time of the calling thread.
inline uint64_t ThreadCpuNs() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
}

// Tells the core that this is a spin loop.
inline void CpuRelax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_CLOCK_H_
