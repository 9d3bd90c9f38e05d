// SigbusGuard: lets the process outlive a front-end that truncates its memory file.
// Opt-in: the embedder, which owns the process's signals, calls InstallSigbusGuard; nothing in the
// framework does. What it needs is process-wide by nature and lives in sigbus_guard.cc alone.
//
// A fault inside a recorded guest mapping gets an anonymous page of zeroes in place of the one that
// is gone, and the mapping is marked poisoned: the access goes on, and the queue stops its ring at
// the next burst boundary (MemoryMap::poisoned). Every other SIGBUS goes to the handler that was
// there before, or ends the process as it would have.
#ifndef VIRTBAY_FRAMEWORK_ISOLATION_SIGBUS_GUARD_H_
#define VIRTBAY_FRAMEWORK_ISOLATION_SIGBUS_GUARD_H_

#include <signal.h>

#include <cstdint>

#include "absl/status/status.h"
#include "framework/base/export.h"

namespace virtbay {

// Installs the handler and starts recording guest mappings; those made earlier are not covered, so
// call it before the first front-end connects. A second call changes nothing. [control]
VIRTBAY_EXPORT absl::Status InstallSigbusGuard();

// Puts the previous handler back; FailedPrecondition when another handler was installed since (it
// may chain to this one, so this one stays). Mappings stay recorded. [control]
VIRTBAY_EXPORT absl::Status RemoveSigbusGuard();

// Pages replaced since the process started. [any]
VIRTBAY_EXPORT uint64_t SigbusPagesReplaced();

// What the handler does with a SIGBUS: true when it was in a recorded guest mapping, which goes on
// with a page of zeroes. For another handler of the signal that comes before it. Async-signal-safe.
bool ReplaceGuestPage(const siginfo_t* info);

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_ISOLATION_SIGBUS_GUARD_H_
