// What a fault handler has to know of the thread that it interrupts: which plugin the thread calls,
// and the way out of a call that has faulted. The handler itself is framework/isolation's; without
// it nothing here costs anything or does anything but call.
// Per thread, on its own stack; everything is for the thread itself unless it says otherwise.
#ifndef VIRTBAY_FRAMEWORK_BASE_CONTAINED_CALL_H_
#define VIRTBAY_FRAMEWORK_BASE_CONTAINED_CALL_H_

#include <setjmp.h>

#include <cstdint>
#include <span>
#include <string>

#include "absl/functional/function_ref.h"

namespace virtbay {

// What the handler saw of a fault. Plain data, filled in signal context.
struct Crash {
  static constexpr int kMaxFrames = 64;
  int signal = 0;
  int code = 0;  // si_code
  uintptr_t address = 0;
  bool in_allocator = false;  // the heap, which is everybody's, cannot be trusted any more
  int frame_count = 0;
  void* frames[kMaxFrames];  // the faulting instruction first, then return addresses

  std::span<void* const> stack() const { return {frames, static_cast<size_t>(frame_count)}; }
};

// "SIGSEGV at 0x10 (no memory there)". [any]
std::string CrashText(const Crash& crash);

// What the thread is doing when it calls a plugin.
class CrashScene {
 public:
  // Whether it is in the plugin now. Async-signal-safe.
  virtual bool InPlugin() const = 0;
  // A report of several lines, without an end of line behind the last one. Called outside of the
  // signal context, also in a process that was forked from the one that crashed.
  virtual std::string Describe(const Crash& crash) const = 0;

 protected:
  ~CrashScene() = default;
};

// A thread's part that the handler reads.
struct CrashThread {
  const CrashScene* scene = nullptr;
  sigjmp_buf* way_out = nullptr;     // of the call that is contained
  Crash* crash = nullptr;            // filled before the way out is taken
  sigjmp_buf* collecting = nullptr;  // the handler follows a stack that may be broken
};
CrashThread* ThisCrashThread();

// From construction to destruction, the thread's scene; gives the thread an alternate signal stack
// for the rest of its life, if it has none. Does nothing while no handler is installed.
class CrashScope {
 public:
  explicit CrashScope(const CrashScene* scene);
  ~CrashScope();
  CrashScope(const CrashScope&) = delete;
  CrashScope& operator=(const CrashScope&) = delete;

 private:
  bool active_ = false;
  const CrashScene* previous_ = nullptr;
};

// Runs `body`, inside a scene, with a way out: false when it faulted, in which case everything that
// it called is left where it was, without destructors. Exceptions pass.
bool CallContained(absl::FunctionRef<void()> body, Crash* crash);

// [any] Whether there is a handler that takes the ways out. Set by the handler's owner.
bool CrashHandlerInstalled();
void SetCrashHandlerInstalled();

// [any] The signal by which the watchdog asks a thread for its stack; 0: there is none. Set by the
// handler's owner.
int StackSignal();
void SetStackSignal(int signal);

// [any] Faults that were contained since the process began; with one the process is tainted.
uint64_t CountContained();
void AddContained();

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_CONTAINED_CALL_H_
