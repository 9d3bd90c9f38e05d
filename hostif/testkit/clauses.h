// The clauses of CheckPlugin: each a function that runs in a process of its own.
// Stateless; one thread.
#ifndef VIRTBAY_HOSTIF_TESTKIT_CLAUSES_H_
#define VIRTBAY_HOSTIF_TESTKIT_CLAUSES_H_

#include "hostif/testkit/check.h"
#include "hostif/testkit/child.h"

namespace virtbay::testkit {

using ClauseFunction = Finding (*)(const CheckOptions&, const Notes&);

// The file, without running anything of it.
Finding CheckAbi(const CheckOptions& options, const Notes& doing);
Finding CheckExports(const CheckOptions& options, const Notes& doing);
// The image.
Finding CheckLoad(const CheckOptions& options, const Notes& doing);
Finding CheckUnload(const CheckOptions& options, const Notes& doing);
// The device.
Finding CheckCreate(const CheckOptions& options, const Notes& doing);
Finding CheckConfig(const CheckOptions& options, const Notes& doing);
Finding CheckFeatures(const CheckOptions& options, const Notes& doing);
Finding CheckRequests(const CheckOptions& options, const Notes& doing);
Finding CheckQuiesce(const CheckOptions& options, const Notes& doing);
Finding CheckReset(const CheckOptions& options, const Notes& doing);
Finding CheckState(const CheckOptions& options, const Notes& doing);
// What is left of it.
Finding CheckThreads(const CheckOptions& options, const Notes& doing);
Finding CheckDescriptors(const CheckOptions& options, const Notes& doing);
Finding CheckMemory(const CheckOptions& options, const Notes& doing);

}  // namespace virtbay::testkit

#endif  // VIRTBAY_HOSTIF_TESTKIT_CLAUSES_H_
