// Sends one line to the host over a stream and waits for the line that answers it.
// Stateless; part of virtbay-guest: the C++ standard library only. Blocks until the deadline.
#ifndef VIRTBAY_HOSTIF_SWIOTLB_GUEST_SEND_H_
#define VIRTBAY_HOSTIF_SWIOTLB_GUEST_SEND_H_

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace virtbay::guest_tool {

// Where the host listens.
struct Target {
  enum class Kind { kVsock, kUnix, kTcp, kDevice };
  Kind kind = Kind::kDevice;
  std::string name;  // path of a socket or a device; numeric address of a host
  unsigned cid = 0;
  unsigned port = 0;
};

// [any] `vsock:CID:PORT` (CID `host` is 2), `unix:PATH`, `tcp:ADDRESS:PORT` (numeric; IPv6 in
// brackets), `device:PATH`. Nothing, with the reason in `why`, for any other text.
std::optional<Target> ParseTarget(std::string_view text, std::string* why);

// [any] The device of /dev of the virtio port NAME that `path`, /dev/virtio-ports/NAME, stands for:
// that link is udev's, and early in a boot nobody has made it. Empty when no port has that name, or
// `path` is another one. `class_directory` is /sys/class/virtio-ports.
std::string VirtioPort(std::string_view path, const std::string& class_directory);

struct Answer {
  bool ok = false;   // the host has accepted it
  std::string text;  // the host's line, or what went wrong before it came
};

// [any] Connects, sends `line` and a newline, and reads one line of at most 64 KiB. All within
// `timeout`.
Answer Send(const Target& target, const std::string& line, std::chrono::milliseconds timeout);

}  // namespace virtbay::guest_tool

#endif  // VIRTBAY_HOSTIF_SWIOTLB_GUEST_SEND_H_
