// CrashHere: ends a callback of a test's plugin the hard way.
// Stateless; on whatever thread is to crash.
#ifndef VIRTBAY_TESTS_SUPPORT_CRASH_HERE_H_
#define VIRTBAY_TESTS_SUPPORT_CRASH_HERE_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>

namespace virtbay::testing {

enum class Crashing : uint32_t {
  kSegv,
  kBus,
  kFpe,
  kIll,
  kAbort,
  kTerminate,
  kOverflow,  // of the stack
  kJump,      // to where no code is
  kHeap,      // found by the allocator
};

// NOLINTBEGIN: that is the point
[[gnu::noinline]] inline int FillStack(volatile char* above) {
  volatile char here[4096];
  here[0] = above[0];
  return above[0] == 'x' ? 0 : here[0] + FillStack(here);
}

// A name to be found in a report.
[[gnu::noinline]] inline void CrashHere(Crashing how) {
  volatile int zero = 0;
  volatile char* volatile null = nullptr;
  switch (how) {
    case Crashing::kSegv:
      *null = 1;
      break;
    case Crashing::kBus: {
      const int fd = memfd_create("crash", MFD_CLOEXEC);
      void* const page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      *static_cast<volatile char*>(page) = 1;
      break;
    }
    case Crashing::kFpe:
      zero = 100 / zero;
      break;
    case Crashing::kIll:
      asm volatile("ud2");
      break;
    case Crashing::kAbort:
      std::abort();
    case Crashing::kTerminate:
      std::terminate();
    case Crashing::kOverflow: {
      volatile char first = 0;
      zero = FillStack(&first);
      break;
    }
    case Crashing::kJump: {
      void (*volatile nowhere)() = nullptr;
      nowhere();
      break;
    }
    case Crashing::kHeap: {
      char* volatile inside = static_cast<char*>(std::malloc(100'000)) + 16;
      char* const part = inside;
      std::free(part);
      break;
    }
  }
  // Not reached, and no tail call either.
  static_cast<void>(!write(-1, "", zero != 0 ? 1u : 0u));
}
// NOLINTEND

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_CRASH_HERE_H_
