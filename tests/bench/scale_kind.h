// ScaleKind: what scale_bench fills a device host with: devices of a type, each with a front-end,
// or shares of one device. Names and requests are the host's control protocol.
// Owned by the measuring thread.
#ifndef VIRTBAY_TESTS_BENCH_SCALE_KIND_H_
#define VIRTBAY_TESTS_BENCH_SCALE_KIND_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace virtbay::bench {

struct ScalePlace {
  std::string control;  // socket of the device host
  std::string share;    // directory with a file `data`
  std::string sockets;  // directory for sockets, and for what else is made
  uint16_t queue_size = 1024;
};

class ScaleKind {
 public:
  // "virtiofs", "virtio-net" or "share".
  static absl::StatusOr<std::unique_ptr<ScaleKind>> Make(const std::string& kind, ScalePlace place);

  virtual ~ScaleKind() = default;

  // Makes what is there once for all of them.
  virtual absl::Status Begin() { return absl::OkStatus(); }
  // The control request that makes one, and the one that ends it.
  virtual absl::StatusOr<nlohmann::json> AddRequest(const std::string& name) const = 0;
  virtual nlohmann::json RemoveRequest(const std::string& name) const = 0;
  // Takes one into use: its front-end, kept until Disconnect.
  virtual absl::Status Connect(const std::string& name) = 0;
  virtual void Disconnect(const std::string& name) = 0;
  // A request to the one of that name after Open and before Close, waited for.
  virtual absl::Status Open(const std::string& name) = 0;
  virtual absl::Status Request() = 0;
  virtual void Close() = 0;
};

}  // namespace virtbay::bench

#endif  // VIRTBAY_TESTS_BENCH_SCALE_KIND_H_
