// The network benchmark's workloads, from the guest's side: bulk TCP either way, request and
// response with and without a connection for each, small UDP datagrams, and idle connections.
// Functions; each has the calling thread for as long as it measures.
#ifndef VIRTBAY_TESTS_BENCH_NET_WORKLOAD_H_
#define VIRTBAY_TESTS_BENCH_NET_WORKLOAD_H_

#include <sys/types.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/bench/net_socket.h"

namespace virtbay::bench {

struct NetCase {
  NetAddress server;
  std::string counters;  // the server's file
  double seconds = 1;
  double warmup = 0.25;
  // Its CPU time is measured; 0: nobody's.
  pid_t backend = 0;
};

// Names of the workloads.
std::vector<std::string> NetWorkloads();

// Waits until a connection to the server can be made; DeadlineExceeded. [control]
absl::Status WaitForServer(const NetAddress& server, double seconds);

// Measures one: rate with its unit, percentiles of the latency in microseconds, segments that this
// namespace sent again, CPU time of the back-end per operation. NotFound for an unknown name;
// Unavailable when the path does not carry it at all. [control]
absl::StatusOr<nlohmann::json> RunNetWorkload(const std::string& name, const NetCase& net);

// Opens connections, prints a line when the server has them all, and keeps them until the end of
// standard input; DataLoss when some have not lived as long. [control]
absl::Status HoldIdleFlows(const NetCase& net, uint32_t count);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NET_WORKLOAD_H_
