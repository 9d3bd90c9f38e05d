// Capture: a pcapng file of a device's frames with their offloads as comments.
// Owned by the NetDevice. Each pair has a buffer of whole blocks, used on the pair's thread, that a
// host thread appends to the file; a frame that finds no room is left out and counted.
#ifndef VIRTBAY_SDK_NET_CAPTURE_H_
#define VIRTBAY_SDK_NET_CAPTURE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "virtbay/sdk/net_device.h"

namespace virtbay::sdk::net {

// Blocks of the format (draft-ietf-opsawg-pcapng), appended to `out`.
void AppendFileHeader(std::string_view interface, const MacAddress& mac, uint32_t snaplen,
                      std::vector<std::byte>* out);
struct CapturedFrame {
  uint64_t realtime_ns = 0;
  uint32_t size = 0;                 // of the frame; `bytes` may be less
  std::span<const std::byte> bytes;  // the first part
  std::span<const std::byte> more;   // and what follows it
  bool from_guest = false;
  std::string_view comment;
};
void AppendFrame(const CapturedFrame& frame, std::vector<std::byte>* out);

// "csum 34+16, tso4 1448 behind 66", into `text`; empty when there is nothing to say.
std::string_view Describe(const Offload& offload, std::span<char> text);

// One pair's part of a capture.
class CaptureBuffer {
 public:
  static constexpr size_t kSize = size_t{512} << 10;

  explicit CaptureBuffer(int fd) : fd_(fd) {
    filling_.reserve(kSize);
    writing_.reserve(kSize);
  }
  // False: no room.
  bool Add(const CapturedFrame& frame);
  // True: Write has to be called, on any thread, then Done on this one.
  bool Start() {
    if (busy_ || filling_.empty()) return false;
    filling_.swap(writing_);
    return busy_ = true;
  }
  // Appends whole blocks; several pairs may write at a time (O_APPEND).
  void Write();
  // The errno of what was written, or 0.
  int Done() {
    busy_ = false;
    writing_.clear();
    return std::exchange(error_, 0);
  }

 private:
  const int fd_;
  bool busy_ = false;
  int error_ = 0;
  std::vector<std::byte> filling_;
  std::vector<std::byte> writing_;
};

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_CAPTURE_H_
