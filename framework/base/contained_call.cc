#include "framework/base/contained_call.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace virtbay {
namespace {

// A signal handler has no other place to look. Initial-exec, so that looking never allocates.
[[gnu::tls_model("initial-exec")]] constinit thread_local CrashThread t_thread;
constinit std::atomic<bool> g_installed{false};
constinit std::atomic<int> g_stack_signal{0};
constinit std::atomic<uint64_t> g_contained{0};

// An alternate signal stack with a guard page below it, from the first scene of a thread to its
// end: a call that overflowed its stack has none left for a handler.
class SignalStack {
 public:
  SignalStack() = default;
  ~SignalStack() {
    if (memory_ == MAP_FAILED) return;
    stack_t off{};
    off.ss_flags = SS_DISABLE;
    sigaltstack(&off, nullptr);
    munmap(memory_, kGuard + kSize);
  }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

  void Ensure() {
    if (looked_) return;
    looked_ = true;
    stack_t present{};
    if (sigaltstack(nullptr, &present) != 0 || (present.ss_flags & SS_DISABLE) == 0) return;
    memory_ = mmap(nullptr, kGuard + kSize, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory_ == MAP_FAILED) return;
    mprotect(memory_, kGuard, PROT_NONE);
    stack_t own{};
    own.ss_sp = static_cast<char*>(memory_) + kGuard;
    own.ss_size = kSize;
    sigaltstack(&own, nullptr);
  }

 private:
  static constexpr size_t kGuard = 4096;
  static constexpr size_t kSize = size_t{64} << 10;
  bool looked_ = false;
  void* memory_ = MAP_FAILED;
};

thread_local SignalStack t_stack;

const char* CodeText(const Crash& crash) {
  switch (crash.signal) {
    case SIGSEGV:
      if (crash.code == SEGV_MAPERR) return "no memory there";
      if (crash.code == SEGV_ACCERR) return "no access";
      return "no valid address";
    case SIGBUS:
      return crash.code == BUS_ADRALN ? "not aligned" : "no memory behind it";
    case SIGFPE:
      return crash.code == FPE_INTDIV ? "division by zero" : "arithmetic";
    case SIGILL:
      return "no valid instruction";
    default:
      return "";
  }
}

}  // namespace

std::string CrashText(const Crash& crash) {
  const char* abbreviation = sigabbrev_np(crash.signal);
  std::string text = absl::StrCat("SIG", abbreviation == nullptr ? "?" : abbreviation);
  if (crash.code <= 0 || crash.signal == SIGABRT) return text;
  const absl::string_view why = CodeText(crash);
  // The kernel does not tell the address of a general protection fault.
  if (crash.code != SI_KERNEL) absl::StrAppend(&text, " at 0x", absl::Hex(crash.address));
  if (!why.empty()) absl::StrAppend(&text, " (", why, ")");
  return text;
}

CrashThread* ThisCrashThread() { return &t_thread; }

CrashScope::CrashScope(const CrashScene* scene) : active_(CrashHandlerInstalled()) {
  if (!active_) return;
  t_stack.Ensure();
  previous_ = t_thread.scene;
  t_thread.scene = scene;
}

CrashScope::~CrashScope() {
  if (active_) t_thread.scene = previous_;
}

// Not inlined, so that nothing of the caller's lives in registers across the way back.
[[gnu::noinline]] bool CallContained(absl::FunctionRef<void()> body, Crash* crash) {
  // Volatile: read after the way back.
  sigjmp_buf* volatile const outer = t_thread.way_out;
  Crash* volatile const outer_crash = t_thread.crash;
  struct Restore {
    sigjmp_buf* volatile const& way_out;
    Crash* volatile const& crash;
    ~Restore() {
      t_thread.way_out = way_out;
      t_thread.crash = crash;
    }
  } restore{outer, outer_crash};
  sigjmp_buf way_out;
  // The handler leaves the signal mask alone, so that there is none to save.
  if (sigsetjmp(way_out, 0) != 0) return false;
  t_thread.way_out = &way_out;
  t_thread.crash = crash;
  body();
  return true;
}

bool CrashHandlerInstalled() { return g_installed.load(std::memory_order_relaxed); }
void SetCrashHandlerInstalled() { g_installed.store(true, std::memory_order_relaxed); }

int StackSignal() { return g_stack_signal.load(std::memory_order_relaxed); }
void SetStackSignal(int signal) { g_stack_signal.store(signal, std::memory_order_relaxed); }

uint64_t CountContained() { return g_contained.load(std::memory_order_relaxed); }
void AddContained() { g_contained.fetch_add(1, std::memory_order_relaxed); }

}  // namespace virtbay
