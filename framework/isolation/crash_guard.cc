#include "framework/isolation/crash_guard.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>

#include "absl/base/const_init.h"
#include "absl/synchronization/mutex.h"
#include "framework/base/contained_call.h"
#include "framework/base/sanitized.h"
#include "framework/base/status.h"
#include "framework/isolation/sigbus_guard.h"

namespace virtbay {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};

// Code of the memory allocator.
struct Range {
  uintptr_t begin = 0;
  uintptr_t end = 0;
};
constexpr const char* kAllocator[] = {"malloc",         "calloc",   "realloc",      "free",
                                      "posix_memalign", "memalign", "aligned_alloc"};

// A question to a thread. Leaked when it is not answered in time, as the answer may still come.
struct StackQuestion {
  sem_t answered;
  std::array<void*, Crash::kMaxFrames> frames;
  int count = 0;
};

// ---- The process-wide state of the guard: a signal handler has no other place to look. ----
// Written before the handlers are installed, only read afterwards.
constinit struct sigaction g_previous[NSIG] = {};
constinit Range g_allocator[std::size(kAllocator)] = {};
constinit std::atomic<bool> g_reporting{false};
constinit absl::Mutex g_mutex(absl::kConstInit);
bool g_installed ABSL_GUARDED_BY(g_mutex) = false;
constinit absl::Mutex g_question_mutex(absl::kConstInit);
// -------------------------------------------------------------------------------------------

// Where the thread was, and what it would have returned to had it just been called there; nothing
// on a processor whose registers are not known here.
struct Place {
  void* instruction = nullptr;
  void* const* return_address = nullptr;
};

Place PlaceOf(const void* context) {
  const auto& machine = static_cast<const ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return {reinterpret_cast<void*>(machine.gregs[REG_RIP]),
          reinterpret_cast<void* const*>(machine.gregs[REG_RSP])};
#elif defined(__aarch64__)
  return {reinterpret_cast<void*>(machine.pc), reinterpret_cast<void* const*>(&machine.regs[30])};
#else
  static_cast<void>(machine);
  return {};
#endif
}

// Async-signal-safe once backtrace() has been called: the unwinder finds its tables without a lock.
int Follow(const void* context, void** frames, int capacity) {
  const Place place = PlaceOf(context);
  constexpr int kHandlers = 8;  // frames of handlers and of the kernel's trampoline
  void* all[Crash::kMaxFrames + kHandlers];
  const int found = backtrace(all, std::min<int>(capacity + kHandlers, std::size(all)));
  const bool known = place.return_address != nullptr;
  int first = 0;
  while (known && first < found && all[first] != place.instruction) ++first;
  const int count = std::min(found - first, capacity);
  if (count > 0) std::memcpy(frames, all + first, static_cast<size_t>(count) * sizeof(*all));
  if (count > 1 || !known) return count;
  // A jump to where no code is: its caller at least.
  frames[0] = place.instruction;
  frames[1] = *place.return_address;
  return 2;
}

// The stack may be what is broken; a fault of ours ends the collection, not the process.
int Backtrace(const void* context, void** frames, int capacity) {
  volatile int count = 1;
  frames[0] = PlaceOf(context).instruction;
  sigjmp_buf over;
  CrashThread* const thread = ThisCrashThread();
  if (sigsetjmp(over, 0) == 0) {
    thread->collecting = &over;
    count = Follow(context, frames, capacity);
  }
  thread->collecting = nullptr;
  return count;
}

void Collect(Crash* crash, int signal, const siginfo_t* info, const void* context) {
  crash->signal = signal;
  crash->code = info->si_code;
  crash->address = info->si_code > 0 ? reinterpret_cast<uintptr_t>(info->si_addr) : 0;
  crash->in_allocator = false;
  crash->frame_count = Backtrace(context, crash->frames, Crash::kMaxFrames);
  for (void* const frame : crash->stack()) {
    const auto at = reinterpret_cast<uintptr_t>(frame);
    for (const Range& range : g_allocator) {
      crash->in_allocator |= at >= range.begin && at < range.end;
    }
  }
}

void Say(const char* text) { static_cast<void>(!write(STDERR_FILENO, text, std::strlen(text))); }

void SayAddress(const void* address) {
  char text[] = "  0x0000000000000000\n";
  auto rest = reinterpret_cast<uintptr_t>(address);
  for (char* digit = text + 19; rest != 0; rest >>= 4) *digit-- = "0123456789abcdef"[rest & 15];
  Say(text);
}

// Names are found by a child, for which nothing is held up and nothing more can break: a process
// that has crashed may hold its allocator's lock.
void Report(const CrashScene& scene, const Crash& crash) {
  constexpr int kLooks = 300;
  constexpr timespec kBetween{0, 10'000'000};
  const pid_t child = _Fork();
  if (child == 0) {
    for (const int signal : kSignals) ::signal(signal, SIG_DFL);
    const std::string text = "virtbay: " + scene.Describe(crash) + "\n";
    size_t done = 0;
    while (done < text.size()) {
      const ssize_t n = write(STDERR_FILENO, text.data() + done, text.size() - done);
      if (n <= 0) break;
      done += static_cast<size_t>(n);
    }
    _exit(done == text.size() ? 0 : 1);
  }
  int ended = -1;
  for (int look = 0; child > 0 && look < kLooks; ++look) {
    const pid_t waited = waitpid(child, &ended, WNOHANG);
    if (waited == child) break;
    if (waited < 0) return;  // somebody else has waited for it
    nanosleep(&kBetween, nullptr);
  }
  if (child > 0 && ended == 0) return;
  if (child > 0 && ended == -1) {
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
  }
  Say("virtbay: a plugin has crashed; addresses of the stack:\n");
  for (void* const frame : crash.stack()) SayAddress(frame);
}

// Hands the signal to whoever had it before.
void Chain(int signal, siginfo_t* info, void* context) {
  const struct sigaction& previous = g_previous[signal];
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(signal, info, context);
    return;
  }
  if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;  // sent, not a fault
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(signal);
    return;
  }
  // A fault repeats itself when this returns, with the registers of the faulting instruction in the
  // core file; a signal that was sent is sent again.
  struct sigaction action = {};
  action.sa_handler = SIG_DFL;
  sigaction(signal, &action, nullptr);
  if (info->si_code <= 0) static_cast<void>(raise(signal));
}

void OnFault(int signal, siginfo_t* info, void* context) {
  CrashThread* const thread = ThisCrashThread();
  if (thread->collecting != nullptr) siglongjmp(*thread->collecting, 1);
  const int saved_errno = errno;
  if (signal == SIGBUS && ReplaceGuestPage(info)) {
    errno = saved_errno;
    return;
  }
  // By the kernel, or by the thread itself (abort): not somebody's kill.
  const bool own = info->si_code > 0 || (info->si_code == SI_TKILL && info->si_pid == getpid());
  if (own && thread->scene != nullptr && thread->scene->InPlugin()) {
    Crash reported;
    Crash* const crash = thread->way_out != nullptr ? thread->crash : &reported;
    Collect(crash, signal, info, context);
    // No lock that the faulting code holds may be one that everybody needs.
    if (thread->way_out != nullptr && !crash->in_allocator) {
      siglongjmp(*thread->way_out, 1);
    }
    // One after the other; most likely the first one ends the process.
    constexpr timespec kBetween{0, 10'000'000};
    while (g_reporting.exchange(true)) nanosleep(&kBetween, nullptr);
    Report(*thread->scene, *crash);
  }
  Chain(signal, info, context);
  g_reporting.store(false);
  errno = saved_errno;
}

void OnStackSignal(int, siginfo_t* info, void* context) {
  if (info->si_code != SI_QUEUE || info->si_pid != getpid()) return;
  const int saved_errno = errno;
  auto* const question = static_cast<StackQuestion*>(info->si_value.sival_ptr);
  question->count = Backtrace(context, question->frames.data(), Crash::kMaxFrames);
  sem_post(&question->answered);
  errno = saved_errno;
}

void FindAllocator() {
  for (size_t i = 0; i < std::size(kAllocator); ++i) {
    void* const function = dlsym(RTLD_DEFAULT, kAllocator[i]);
    Dl_info info{};
    ElfW(Sym)* symbol = nullptr;
    if (function == nullptr ||
        dladdr1(function, &info, reinterpret_cast<void**>(&symbol), RTLD_DL_SYMENT) == 0 ||
        symbol == nullptr) {
      continue;
    }
    const auto begin = reinterpret_cast<uintptr_t>(info.dli_saddr);
    g_allocator[i] = {begin, begin + symbol->st_size};
  }
}

// The highest real-time signal that nobody handles.
void InstallStackSignal() {
  for (int signal = SIGRTMAX; signal >= SIGRTMIN; --signal) {
    struct sigaction present = {};
    if (sigaction(signal, nullptr, &present) != 0 || (present.sa_flags & SA_SIGINFO) != 0 ||
        present.sa_handler != SIG_DFL) {
      continue;
    }
    struct sigaction action = {};
    action.sa_sigaction = &OnStackSignal;
    action.sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK;
    if (sigaction(signal, &action, nullptr) != 0) return;
    SetStackSignal(signal);
    return;
  }
}

}  // namespace

absl::Status InstallCrashGuard() {
  if (kSanitized) {
    return absl::UnimplementedError(
        "crashes are neither contained nor reported in a build with sanitizers, which report them "
        "themselves");
  }
  absl::MutexLock lock(&g_mutex);
  if (g_installed) return absl::OkStatus();
  // Loads what it needs, which in a handler it could not.
  void* first[2];
  static_cast<void>(backtrace(first, static_cast<int>(std::size(first))));
  FindAllocator();
  for (const int signal : kSignals) {
    if (sigaction(signal, nullptr, &g_previous[signal]) != 0) {
      return ErrnoStatus(errno, "crash guard: sigaction");
    }
  }
  SetCrashHandlerInstalled();
  for (const int signal : kSignals) {
    struct sigaction action = {};
    action.sa_sigaction = &OnFault;
    // Not deferred, as the handler may be left by a jump, which restores no mask.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    if (sigaction(signal, &action, nullptr) != 0) {
      return ErrnoStatus(errno, "crash guard: sigaction");
    }
  }
  InstallStackSignal();
  g_installed = true;
  return absl::OkStatus();
}

uint64_t CrashesContained() { return CountContained(); }

std::vector<void*> StackOf(pid_t thread, absl::Duration timeout) {
  const int signal = StackSignal();
  if (signal == 0 || thread == 0) return {};
  absl::MutexLock lock(&g_question_mutex);
  auto question = std::make_unique<StackQuestion>();
  if (sem_init(&question->answered, 0, 0) != 0) return {};
  siginfo_t info{};
  info.si_signo = signal;
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_uid = getuid();
  info.si_value.sival_ptr = question.get();
  if (syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, signal, &info) != 0) return {};
  const timespec until = absl::ToTimespec(absl::Now() + timeout);
  int waited = 0;
  while ((waited = sem_timedwait(&question->answered, &until)) != 0 && errno == EINTR) continue;
  if (waited != 0) {
    static_cast<void>(question.release());
    return {};
  }
  std::vector<void*> frames(question->frames.begin(), question->frames.begin() + question->count);
  sem_destroy(&question->answered);
  return frames;
}

}  // namespace virtbay
