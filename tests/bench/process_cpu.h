// ProcessCpu: CPU time used so far by a process, its descendants and all their threads, ended ones
// included. Stateless; any thread.
#ifndef VIRTBAY_TESTS_BENCH_PROCESS_CPU_H_
#define VIRTBAY_TESTS_BENCH_PROCESS_CPU_H_

#include <sys/types.h>
#include <time.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

namespace virtbay::bench {

// The process and its descendants: a server may serve in a child of its own sandbox.
inline std::vector<pid_t> ProcessTree(pid_t root) {
  std::vector<pid_t> pids = {root};
  for (size_t i = 0; i < pids.size(); ++i) {
    const std::filesystem::path tasks = "/proc/" + std::to_string(pids[i]) + "/task";
    std::error_code error;
    for (auto task = std::filesystem::directory_iterator(tasks, error);
         !error && task != std::filesystem::directory_iterator(); task.increment(error)) {
      std::ifstream children(task->path() / "children");
      for (pid_t child = 0; children >> child;) pids.push_back(child);
    }
  }
  return pids;
}

// CPU nanoseconds of these processes; 0 for one that has gone.
inline uint64_t ProcessCpuNs(const std::vector<pid_t>& pids) {
  uint64_t sum = 0;
  for (const pid_t pid : pids) {
    clockid_t clock{};
    timespec now{};
    // The process clock counts what /proc/PID/stat does, but in nanoseconds.
    if (::clock_getcpuclockid(pid, &clock) != 0 || ::clock_gettime(clock, &now) != 0) continue;
    sum += static_cast<uint64_t>(now.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(now.tv_nsec);
  }
  return sum;
}

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_PROCESS_CPU_H_
