#include "sdk/net/capture.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace virtbay::sdk::net {
namespace {

constexpr uint32_t kSectionHeader = 0x0a0d0d0a;
constexpr uint32_t kInterface = 1;
constexpr uint32_t kEnhancedPacket = 6;
constexpr uint16_t kComment = 1;
// As much as one pair has at once, if the system allows that.
constexpr int kFifoSize = CaptureBuffer::kSize;

// Writes one block; its length comes at both ends.
class Block {
 public:
  Block(uint32_t type, std::vector<std::byte>* out) : out_(out), start_(out->size()) {
    Put(type);
    Put(uint32_t{0});
  }
  template <typename T>
  void Put(const T& value) {
    Bytes(&value, sizeof(value));
  }
  void Bytes(const void* data, size_t len) {
    const auto* bytes = static_cast<const std::byte*>(data);
    out_->insert(out_->end(), bytes, bytes + len);
  }
  void Pad() {
    while ((out_->size() - start_) % 4 != 0) out_->push_back(std::byte{0});
  }
  void Option(uint16_t code, const void* data, size_t len) {
    Put(code);
    Put(static_cast<uint16_t>(len));
    Bytes(data, len);
    Pad();
  }
  void Option(uint16_t code, std::string_view text) { Option(code, text.data(), text.size()); }
  void End() {
    Put(uint32_t{0});  // opt_endofopt
    const auto length = static_cast<uint32_t>(out_->size() - start_ + 4);
    Put(length);
    std::memcpy(out_->data() + start_ + 4, &length, sizeof(length));
  }

 private:
  std::vector<std::byte>* const out_;
  const size_t start_;
};

}  // namespace

void AppendFileHeader(std::string_view interface, const MacAddress& mac, uint32_t snaplen,
                      std::vector<std::byte>* out) {
  Block section(kSectionHeader, out);
  section.Put(uint32_t{0x1a2b3c4d});
  section.Put(uint16_t{1});
  section.Put(uint16_t{0});
  section.Put(int64_t{-1});
  section.Option(4, "virtbay");  // shb_userappl
  section.End();
  Block description(kInterface, out);
  description.Put(uint16_t{1});  // LINKTYPE_ETHERNET
  description.Put(uint16_t{0});
  description.Put(snaplen);
  description.Option(2, interface);  // if_name
  description.Option(6, mac.data(), mac.size());
  const uint8_t nanoseconds = 9;
  description.Option(9, &nanoseconds, 1);  // if_tsresol
  description.End();
}

void AppendFrame(const CapturedFrame& frame, std::vector<std::byte>* out) {
  Block block(kEnhancedPacket, out);
  block.Put(uint32_t{0});  // interface
  block.Put(static_cast<uint32_t>(frame.realtime_ns >> 32));
  block.Put(static_cast<uint32_t>(frame.realtime_ns));
  block.Put(static_cast<uint32_t>(frame.bytes.size() + frame.more.size()));
  block.Put(frame.size);
  block.Bytes(frame.bytes.data(), frame.bytes.size());
  block.Bytes(frame.more.data(), frame.more.size());
  block.Pad();
  // Of the guest's interface: what it sends is outbound.
  const uint32_t flags = frame.from_guest ? 2 : 1;
  block.Option(2, &flags, sizeof(flags));  // epb_flags
  if (!frame.comment.empty()) block.Option(kComment, frame.comment);
  block.End();
}

namespace {

size_t BlockSize(std::span<const std::byte> block) {
  uint32_t length = 0;
  std::memcpy(&length, block.data() + 4, sizeof(length));
  return length;
}

// As many bytes as it takes; `error` is 0 when that is all of them.
size_t WriteSome(int fd, std::span<const std::byte> bytes, int* error) {
  size_t written = 0;
  *error = 0;
  while (written < bytes.size() && *error == 0) {
    const ssize_t n = write(fd, bytes.data() + written, bytes.size() - written);
    if (n > 0) {
      written += static_cast<size_t>(n);
    } else if (n == 0 || errno != EINTR) {
      *error = n == 0 ? EIO : errno;
    }
  }
  return written;
}

}  // namespace

std::string_view Describe(const Offload& offload, std::span<char> text) {
  int n = 0;
  const auto room = [&] { return text.size() - static_cast<size_t>(n); };
  if (offload.needs_csum) {
    n += std::snprintf(text.data() + n, room(), "csum %u+%u", offload.csum_start,
                       offload.csum_offset);
  } else if (offload.data_valid) {
    n += std::snprintf(text.data() + n, room(), "data valid");
  }
  if (offload.gso != Gso::kNone) {
    static constexpr const char* kNames[] = {"", "tso4", "tso6", "uso"};
    n += std::snprintf(text.data() + n, room(), "%s%s%s, segments of %u behind %u",
                       n > 0 ? ", " : "", kNames[static_cast<size_t>(offload.gso)],
                       offload.ecn ? " ecn" : "", offload.gso_size, offload.hdr_len);
  }
  return {text.data(), std::min(static_cast<size_t>(n), text.size() - 1)};
}

bool CaptureBuffer::Add(const CapturedFrame& frame) {
  // More than the fixed parts and options of a block.
  const size_t most = frame.bytes.size() + frame.more.size() + frame.comment.size() + 96;
  if (kSize - filling_.size() < most) return false;
  AppendFrame(frame, &filling_);
  return true;
}

Result<std::unique_ptr<CaptureFile>> CaptureFile::Open(const std::string& path, bool fresh) {
  // O_NONBLOCK: nobody may ever come to the other end of a FIFO.
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  const int fd = open(path.c_str(), flags | (fresh ? O_TRUNC : 0), 0600);
  const int error = errno;
  struct stat what {};
  if (fd < 0) {
    const bool unread = error == ENXIO && stat(path.c_str(), &what) == 0 && S_ISFIFO(what.st_mode);
    if (!unread) return Errno(error, path);
    return std::unique_ptr<CaptureFile>(new CaptureFile(path, Kind::kFifo, -1));
  }
  Kind kind = Kind::kRegular;
  if (fstat(fd, &what) == 0 && !S_ISREG(what.st_mode)) {
    kind = S_ISFIFO(what.st_mode) ? Kind::kFifo : Kind::kOther;
  }
  if (kind == Kind::kFifo) fcntl(fd, F_SETPIPE_SZ, kFifoSize);
  return std::unique_ptr<CaptureFile>(new CaptureFile(path, kind, fd));
}

CaptureFile::~CaptureFile() {
  if (fd_ >= 0) close(fd_);
}

int CaptureFile::Begin(std::vector<std::byte> header) {
  const std::lock_guard lock(mutex_);
  header_ = std::move(header);
  if (kind_ == Kind::kRegular) return AppendHeader();
  rest_ = header_;
  // What a reader gets it gets with the first frame, by a thread to which no SIGPIPE comes.
  if (kind_ == Kind::kFifo) return FindReader();
  size_t done = 0;
  return AppendStream({}, &done);
}

int CaptureFile::Append(std::span<const std::byte> blocks, uint64_t* lost) {
  const std::lock_guard lock(mutex_);
  size_t done = 0;
  int error = 0;
  if (kind_ == Kind::kRegular) {
    error = AppendHeader();
    if (error == 0) error = AppendRegular(blocks, &done);
  } else {
    if (kind_ == Kind::kFifo) error = FindReader();
    if (error == 0) error = AppendStream(blocks, &done);
  }
  for (; done < blocks.size(); done += BlockSize(blocks.subspan(done))) ++*lost;
  return error;
}

int CaptureFile::AppendHeader() {
  size_t done = 0;
  const int error = AppendRegular(header_, &done);
  header_.erase(header_.begin(), header_.begin() + static_cast<std::ptrdiff_t>(done));
  return error;
}

int CaptureFile::FindReader() {
  if (fd_ >= 0) {
    pollfd look = {fd_, POLLOUT, 0};
    if (poll(&look, 1, 0) < 0 || (look.revents & POLLERR) == 0) return 0;
    LoseReader();
  }
  fd_ = open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
  if (fd_ < 0) return errno;
  struct stat now {};
  if (fstat(fd_, &now) != 0 || !S_ISFIFO(now.st_mode)) {
    LoseReader();
    return ENXIO;
  }
  fcntl(fd_, F_SETPIPE_SZ, kFifoSize);
  rest_ = header_;
  return 0;
}

// What the reader left in the FIFO goes with its last descriptor.
void CaptureFile::LoseReader() {
  close(fd_);
  fd_ = -1;
  rest_.clear();
}

// `done`: the bytes of blocks that are there or will be. That it takes no more now is no error.
int CaptureFile::AppendStream(std::span<const std::byte> blocks, size_t* done) {
  int error = 0;
  const size_t before = WriteSome(fd_, rest_, &error);
  rest_.erase(rest_.begin(), rest_.begin() + static_cast<std::ptrdiff_t>(before));
  if (error == 0) {
    const size_t written = WriteSome(fd_, blocks, &error);
    while (*done < written) {
      *done += BlockSize(blocks.subspan(*done));
      if (*done > written) {
        const std::span<const std::byte> rest = blocks.subspan(written, *done - written);
        rest_.assign(rest.begin(), rest.end());
      }
    }
  }
  if (error == EAGAIN) return 0;
  if (kind_ != Kind::kFifo || error != EPIPE) return error;
  LoseReader();
  return ENXIO;
}

// `done`: the bytes of the whole blocks that are in the file.
int CaptureFile::AppendRegular(std::span<const std::byte> blocks, size_t* done) {
  if (broken_) return EIO;
  int error = 0;
  const size_t written = WriteSome(fd_, blocks, &error);
  while (*done < blocks.size() && *done + BlockSize(blocks.subspan(*done)) <= written) {
    *done += BlockSize(blocks.subspan(*done));
  }
  if (*done == written) return error;
  // A part of a block would make all that follows unreadable.
  const off_t end = lseek(fd_, 0, SEEK_CUR);
  struct stat now {};
  const bool last = end >= 0 && fstat(fd_, &now) == 0 && now.st_size == end;
  broken_ = !last || ftruncate(fd_, end - static_cast<off_t>(written - *done)) != 0;
  return error;
}

}  // namespace virtbay::sdk::net
