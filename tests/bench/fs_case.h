// The file system workloads by name, and what one measurement of one gives.
// Constants and plain data; any thread.
#ifndef VIRTBAY_TESTS_BENCH_FS_CASE_H_
#define VIRTBAY_TESTS_BENCH_FS_CASE_H_

#include <array>
#include <cstdint>

namespace virtbay::bench {

enum class FsKind {
  kLookupGetattr,  // one operation: the attributes of a file by name
  kReadDirPlus,    // one operation: a buffer of entries with their attributes
  kCreateUnlink,   // one operation: create, write 4 KiB, close, unlink
  kRandomRead,
  kRandomReadDirect,
  kRandomWrite,
  kSequentialRead,
  kSequentialWrite,
  kMixed,  // 60 % random read, 20 % random write, 15 % lookup+getattr, 5 % create to unlink
};

struct FsCase {
  const char* name;
  FsKind kind;
  uint32_t depth;
  const char* unit;
};

inline constexpr std::array kFsCases = {
    FsCase{"lookup_getattr_d1", FsKind::kLookupGetattr, 1, "ops/s"},
    FsCase{"lookup_getattr_d16", FsKind::kLookupGetattr, 16, "ops/s"},
    FsCase{"readdirplus", FsKind::kReadDirPlus, 1, "entries/s"},
    FsCase{"rand_read_4k_d1", FsKind::kRandomRead, 1, "ops/s"},
    FsCase{"rand_read_4k_d32", FsKind::kRandomRead, 32, "ops/s"},
    FsCase{"rand_read_4k_direct_d1", FsKind::kRandomReadDirect, 1, "ops/s"},
    FsCase{"rand_read_4k_direct_d32", FsKind::kRandomReadDirect, 32, "ops/s"},
    FsCase{"seq_read_1m_d1", FsKind::kSequentialRead, 1, "MB/s"},
    FsCase{"seq_read_1m_d4", FsKind::kSequentialRead, 4, "MB/s"},
    FsCase{"create_write_unlink_d1", FsKind::kCreateUnlink, 1, "ops/s"},
    FsCase{"create_write_unlink_d8", FsKind::kCreateUnlink, 8, "ops/s"},
    FsCase{"rand_write_4k_d32", FsKind::kRandomWrite, 32, "ops/s"},
    FsCase{"seq_write_1m_d1", FsKind::kSequentialWrite, 1, "MB/s"},
    FsCase{"seq_write_1m_d4", FsKind::kSequentialWrite, 4, "MB/s"},
    FsCase{"mixed_d16", FsKind::kMixed, 16, "ops/s"},
};

struct FsMeasurement {
  uint64_t operations = 0;
  double seconds = 0;
  double units_per_second = 0;  // of FsCase::unit
  double p50_us = 0;            // of one operation, first request to last answer
  double p99_us = 0;
  double cpu_us_per_op = 0;  // of the back-end, or for plain system calls of the caller
  double kicks_per_op = 0;
  double calls_per_op = 0;
};

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_FS_CASE_H_
