// CrashGuard: what becomes of a fault in a plugin's callback, on any thread that calls plugins.
// Opt-in: the embedder, which owns the process's signals, calls InstallCrashGuard, or has a Host
// contain crashes (HostOptions::contain_crashes). Process-wide by nature.
//
// A fault (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) in a callback that is contained leaves that
// callback by siglongjmp, see framework/base/contained_call.h. In one that is not, a report with
// the names of functions goes to stderr first, and then the signal goes where it would have gone
// without. So does every fault outside of callbacks, without a report. A SIGBUS that the
// SigbusGuard deals with stays its own.
#ifndef VIRTBAY_FRAMEWORK_ISOLATION_CRASH_GUARD_H_
#define VIRTBAY_FRAMEWORK_ISOLATION_CRASH_GUARD_H_

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "framework/base/export.h"

namespace virtbay {

// Installs the handlers, and one for a real-time signal that nobody else handles, by which the
// watchdog asks a thread for its stack; call it before the first Host is made. A second call
// changes nothing. Unimplemented in a build with sanitizers, which report faults themselves.
// [control]
VIRTBAY_EXPORT absl::Status InstallCrashGuard();

// Faults of plugins that were contained since the process started: with one the process is tainted,
// as what the plugin did before nobody knows. [any]
VIRTBAY_EXPORT uint64_t CrashesContained();

// Where the thread is: the addresses of its frames, the innermost first. Empty when it does not
// answer in time (it blocks the signal, or sleeps where no signal is taken), or without a guard.
// [control]
std::vector<void*> StackOf(pid_t thread, absl::Duration timeout);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_ISOLATION_CRASH_GUARD_H_
