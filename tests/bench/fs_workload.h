// FsWorkload: a workload as FUSE requests: how an operation starts and goes on. RunFsCase drives
// one over a FuseSession at a depth and measures it.
// Owned by the benchmark's only thread.
#ifndef VIRTBAY_TESTS_BENCH_FS_WORKLOAD_H_
#define VIRTBAY_TESTS_BENCH_FS_WORKLOAD_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "hostif/guest/fuse_session.h"
#include "tests/bench/fs_case.h"

namespace virtbay::bench {

// One operation in progress; `slot` holds its current request.
struct FsOp {
  guest::FuseSlot* slot = nullptr;
  uint64_t start_ns = 0;
  uint32_t step = 0;
  uint32_t kind = 0;
  uint32_t index = 0;
  uint64_t offset = 0;
  uint64_t node = 0;
  uint64_t fh = 0;
  double units = 1;  // what the operation counts for
  const char* error = nullptr;
};

class FsWorkload {
 public:
  virtual ~FsWorkload() = default;
  // Looks up and opens what the operations need; not timed.
  virtual absl::Status Prepare(guest::FuseSession& session) = 0;
  // Builds the first request of an operation; false at the end of a pass.
  virtual bool Start(FsOp& op) = 0;
  // Looks at a finished request; true when the operation's next one is built. Sets op.error when
  // the answer is not right.
  virtual bool Step(FsOp& op) = 0;
  // Between two passes, nothing in flight; not timed.
  virtual absl::Status EndPass() { return absl::OkStatus(); }
  // Checks what was written and closes; not timed.
  virtual absl::Status Finish() = 0;
};

std::unique_ptr<FsWorkload> MakeFsWorkload(FsKind kind, uint64_t salt);

struct FsRunOptions {
  guest::WaitMode wait = guest::WaitMode::kSleep;
  double seconds = 1;
  double warmup_seconds = 0.1;
  uint64_t salt = 1;  // of what is written
  std::vector<pid_t> backend;
};

// Runs one case; an error of the transport, or of any operation, ends it.
absl::StatusOr<FsMeasurement> RunFsCase(guest::FuseSession& session, const FsCase& fs_case,
                                        const FsRunOptions& options);

// Reads parts of the file "data" and compares every byte.
absl::Status VerifyFsData(guest::FuseSession& session);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_FS_WORKLOAD_H_
