// SignalsToBlock: for threads of ours, since signals of the process are the embedder's and go to
// its threads. Stateless; [any].
#ifndef VIRTBAY_FRAMEWORK_BASE_SIGNALS_H_
#define VIRTBAY_FRAMEWORK_BASE_SIGNALS_H_

#include <signal.h>

#include "framework/base/contained_call.h"

namespace virtbay {

// All but faults, which would end the process if they were blocked, and the one by which the
// watchdog asks a thread for its stack. SIGPIPE and SIGXFSZ come to the thread that writes, and
// stay pending for ever, which is what is wanted.
inline sigset_t SignalsToBlock() {
  sigset_t set;
  sigfillset(&set);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS}) {
    sigdelset(&set, fault);
  }
  if (const int asked = StackSignal(); asked != 0) sigdelset(&set, asked);
  return set;
}

}  // namespace virtbay

#endif  // VIRTBAY_FRAMEWORK_BASE_SIGNALS_H_
