// NetServer: the host's side of the network benchmark: sinks, sources and echoes on consecutive
// ports (net_socket.h).
// One function; it has the calling thread, and threads of its own for connections, until the
// process ends.
#ifndef VIRTBAY_TESTS_BENCH_NET_SERVER_H_
#define VIRTBAY_TESTS_BENCH_NET_SERVER_H_

#include <string>

#include "absl/status/status.h"
#include "tests/bench/net_socket.h"

namespace virtbay::bench {

// Prints a line when clients can connect, and serves for good; the errno of a socket that cannot be
// made. [control]
absl::Status ServeNet(const NetAddress& address, const std::string& counters);

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_NET_SERVER_H_
