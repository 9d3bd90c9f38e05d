// The file system workloads by plain system calls on the same directory: the third column.
// One thread, except for O_DIRECT reads at depth 32, which need as many to reach the disk's limit.
#ifndef VIRTBAY_TESTS_BENCH_FS_NATIVE_H_
#define VIRTBAY_TESTS_BENCH_FS_NATIVE_H_

#include <string>

#include "absl/status/statusor.h"
#include "tests/bench/fs_case.h"

namespace virtbay::bench {

// Runs one case in `dir` for about `seconds` after `warmup_seconds`.
absl::StatusOr<FsMeasurement> RunNativeCase(const std::string& dir, const FsCase& fs_case,
                                            double seconds, double warmup_seconds);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_FS_NATIVE_H_
