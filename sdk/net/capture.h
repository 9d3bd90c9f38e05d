// Capture: a pcapng file of a device's frames with their offloads as comments.
// Owned by the NetDevice. Each pair has a buffer of whole blocks, used on the pair's thread, that a
// host thread appends to the file; a frame that finds no room, there, on the disk or in a FIFO, is
// left out and counted, and the file stays one of whole blocks.
#ifndef VIRTBAY_SDK_NET_CAPTURE_H_
#define VIRTBAY_SDK_NET_CAPTURE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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

// The file of a capture, to which the host's threads append. A FIFO is one as well: what nobody
// reads, or not fast enough, is left out, and each reader begins with a header.
class CaptureFile {
 public:
  // Opens it, never waiting for a reader; `fresh`: what is in it goes. An Error names the path.
  // [control]
  static Result<std::unique_ptr<CaptureFile>> Open(const std::string& path, bool fresh);
  ~CaptureFile();
  CaptureFile(const CaptureFile&) = delete;
  CaptureFile& operator=(const CaptureFile&) = delete;

  // Begins a section with that header, now or as soon as there is room for it; the errno of now, or
  // 0. [control]
  int Begin(std::vector<std::byte> header);
  // Appends whole blocks, as many as there is room for; returns 0 or the errno, and adds to `lost`
  // how many were left out. [any] thread that has SIGPIPE blocked, but none of a queue: it waits
  // for the disk, though not for a reader.
  int Append(std::span<const std::byte> blocks, uint64_t* lost);
  // Whether it is a FIFO, of which Begin and Append say ENXIO while nobody reads it. [any]
  bool is_fifo() const { return kind_ == Kind::kFifo; }

 private:
  enum class Kind : uint8_t { kRegular, kFifo, kOther };

  CaptureFile(std::string path, Kind kind, int fd) : path_(std::move(path)), kind_(kind), fd_(fd) {}
  int AppendHeader();
  int AppendRegular(std::span<const std::byte> blocks, size_t* done);
  int AppendStream(std::span<const std::byte> blocks, size_t* done);
  int FindReader();
  void LoseReader();

  const std::string path_;
  const Kind kind_;
  std::mutex mutex_;
  int fd_;                         // -1: a FIFO that nobody reads
  std::vector<std::byte> header_;  // that has not been written; of a FIFO: for the next reader
  std::vector<std::byte> rest_;    // what goes before the next block of what is no regular file
  bool broken_ = false;            // it ends in a part of a block that could not be taken back
};

// One pair's part of a capture.
class CaptureBuffer {
 public:
  static constexpr size_t kSize = size_t{512} << 10;

  explicit CaptureBuffer(CaptureFile* file) : file_(file) {
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
  void Write() { error_ = file_->Append(writing_, &lost_); }
  // The errno of what was written, or 0, and the frames that were left out.
  struct Outcome {
    int error = 0;
    uint64_t lost = 0;
  };
  Outcome Done() {
    busy_ = false;
    writing_.clear();
    return {std::exchange(error_, 0), std::exchange(lost_, 0)};
  }

 private:
  CaptureFile* const file_;
  bool busy_ = false;
  int error_ = 0;
  uint64_t lost_ = 0;
  std::vector<std::byte> filling_;
  std::vector<std::byte> writing_;
};

}  // namespace virtbay::sdk::net

#endif  // VIRTBAY_SDK_NET_CAPTURE_H_
