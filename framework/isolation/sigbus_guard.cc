#include "framework/isolation/sigbus_guard.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "absl/base/const_init.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/status.h"
#include "framework/memory/mapping_registry.h"

namespace virtbay {
namespace {

// ---- The process-wide state of the guard: a signal handler has no other place to look. ----
constinit MappingRegistry g_registry;
// The handler that was there before; written before ours is installed, only read afterwards.
constinit struct sigaction g_previous = {};
constinit std::atomic<uint64_t> g_pages_replaced{0};
constinit std::atomic<bool> g_active{false};  // g_installed, for a handler
constinit absl::Mutex g_mutex(absl::kConstInit);
bool g_installed ABSL_GUARDED_BY(g_mutex) = false;
// -------------------------------------------------------------------------------------------

// Async-signal-safe: atomics and one system call.
bool ReplacePage(uintptr_t address) {
  MappingRegistry::Range range;
  if (!g_registry.Find(address, &range)) return false;
  const uintptr_t page = address & ~(static_cast<uintptr_t>(range.page_size) - 1);
  // Marked first: whoever reads the zeroes can see that they are not the guest's.
  range.poisoned->store(true, std::memory_order_release);
  // The bare system call: a sanitizer's mmap is more than that, and we are in a signal handler.
  const long at = syscall(SYS_mmap, page, range.page_size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0L);
  if (at == -1) return false;
  g_pages_replaced.fetch_add(1, std::memory_order_relaxed);
  return true;
}

// Hands the signal to whoever had it before.
void Chain(int signal, siginfo_t* info, void* context) {
  if ((g_previous.sa_flags & SA_SIGINFO) != 0) {
    g_previous.sa_sigaction(signal, info, context);
    return;
  }
  if (g_previous.sa_handler == SIG_IGN && info->si_code <= 0) return;  // sent, not a fault
  if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    g_previous.sa_handler(signal);
    return;
  }
  // A fault repeats itself when this returns and then takes the default action, with the registers
  // of the faulting instruction in the core file; a signal that was sent is sent again.
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  if (info->si_code <= 0) static_cast<void>(raise(signal));
}

void OnSigbus(int signal, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  if (!ReplaceGuestPage(info)) Chain(signal, info, context);
  errno = saved_errno;
}

}  // namespace

bool ReplaceGuestPage(const siginfo_t* info) {
  // si_code > 0: from the kernel, so si_addr is an address.
  return g_active.load(std::memory_order_relaxed) && info->si_code > 0 &&
         ReplacePage(reinterpret_cast<uintptr_t>(info->si_addr));
}

absl::Status InstallSigbusGuard() {
  absl::MutexLock lock(&g_mutex);
  if (g_installed) return absl::OkStatus();
  // Asked for separately: the handler may run before an installing sigaction() has returned.
  struct sigaction previous = {};
  if (sigaction(SIGBUS, nullptr, &previous) != 0) {
    return ErrnoStatus(errno, "SIGBUS guard: sigaction");
  }
  const bool chained_to_ours =
      (previous.sa_flags & SA_SIGINFO) != 0 && previous.sa_sigaction == &OnSigbus;
  if (!chained_to_ours) g_previous = previous;

  g_active.store(true, std::memory_order_relaxed);
  struct sigaction action = {};
  action.sa_sigaction = &OnSigbus;
  // The previous handler runs inside ours and keeps the mask that it asked for.
  action.sa_mask = g_previous.sa_mask;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | (g_previous.sa_flags & (SA_RESTART | SA_NODEFER));
  if (sigaction(SIGBUS, &action, nullptr) != 0) {
    return ErrnoStatus(errno, "SIGBUS guard: sigaction");
  }
  MappingRegistry::SetCurrent(&g_registry);
  g_installed = true;
  return absl::OkStatus();
}

absl::Status RemoveSigbusGuard() {
  absl::MutexLock lock(&g_mutex);
  if (!g_installed) return absl::OkStatus();
  struct sigaction current = {};
  if (sigaction(SIGBUS, nullptr, &current) != 0) {
    return ErrnoStatus(errno, "SIGBUS guard: sigaction");
  }
  if ((current.sa_flags & SA_SIGINFO) == 0 || current.sa_sigaction != &OnSigbus) {
    return absl::FailedPreconditionError("SIGBUS guard: another handler was installed over it");
  }
  if (sigaction(SIGBUS, &g_previous, nullptr) != 0) {
    return ErrnoStatus(errno, "SIGBUS guard: sigaction");
  }
  MappingRegistry::SetCurrent(nullptr);
  g_active.store(false, std::memory_order_relaxed);
  g_installed = false;
  return absl::OkStatus();
}

uint64_t SigbusPagesReplaced() { return g_pages_replaced.load(std::memory_order_relaxed); }

}  // namespace virtbay
