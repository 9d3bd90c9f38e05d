// NetCounters: what the benchmark's server has received, in a file that its client maps as well, so
// that a figure is taken where the bytes arrive and never travels over the path that is measured.
// Owned by whoever maps it; counters are atomic [any].
#ifndef VIRTBAY_TESTS_BENCH_NET_COUNTERS_H_
#define VIRTBAY_TESTS_BENCH_NET_COUNTERS_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"

namespace virtbay::bench {

struct NetCounters {
  std::atomic<uint64_t> sunk_bytes;  // of all bulk connections to the server
  std::atomic<uint64_t> idle_flows;  // connections to the idle port that are open

  struct Unmap {
    void operator()(NetCounters* counters) const { ::munmap(counters, sizeof(NetCounters)); }
  };
  using Ref = std::unique_ptr<NetCounters, Unmap>;

  // Maps the file, which is made and filled with zeros where it is not there; the errno of open,
  // ftruncate or mmap.
  static absl::StatusOr<Ref> Map(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (!fd.valid() || ::ftruncate(fd.get(), sizeof(NetCounters)) != 0) {
      return ErrnoStatus(errno, path);
    }
    void* at =
        ::mmap(nullptr, sizeof(NetCounters), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at == MAP_FAILED) return ErrnoStatus(errno, absl::StrCat("mapping ", path));
    return Ref(static_cast<NetCounters*>(at));
  }
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NET_COUNTERS_H_
