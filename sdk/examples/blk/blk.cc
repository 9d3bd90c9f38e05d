// virtio-blk (virtio 1.3 5.2) over a file or a block device of the host. Shows payload that goes
// between a file and the guest without being looked at, operations that the host carries out, and
// queues with a thread each.
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/virtio_blk.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "virtbay/sdk/option.h"
#include "virtbay/sdk/plugin.h"
#include "virtbay/sdk/unique_fd.h"

namespace {

namespace sdk = virtbay::sdk;
using sdk::Device;
using sdk::Host;
using sdk::Properties;
using sdk::QueueProperties;
using sdk::Request;
using sdk::Status;

static_assert(std::endian::native == std::endian::little, "the device's fields are little-endian");

constexpr uint32_t kVirtioIdBlk = 2;
constexpr uint32_t kQueueSize = 256;
constexpr uint64_t kSector = 512;
constexpr uint32_t kMaxRanges = 32;              // in one discard or write zeroes
constexpr uint32_t kMaxRangeSectors = 1u << 22;  // 2 GiB
constexpr uint32_t kHeader = sizeof(virtio_blk_outhdr);
constexpr uint32_t kRange = sizeof(virtio_blk_discard_write_zeroes);
constexpr uint32_t kView = VIRTIO_BLK_ID_BYTES + 1;  // of a reply that is made here
constexpr uint32_t kFileRole = 1;                    // of a saved state's descriptors

constexpr uint64_t Bit(uint32_t feature) { return uint64_t{1} << feature; }

class Blk final : public Device {
 public:
  static constexpr std::array kOptions = {
      sdk::MakeOption("file", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("readonly", VIRTBAY_OPTION_BOOLEAN),
      sdk::MakeOption("serial", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("block-size", VIRTBAY_OPTION_INTEGER),
      sdk::MakeOption("queues", VIRTBAY_OPTION_INTEGER),
  };

  Status Init() override {
    Status status = ReadOptions();
    if (!status.ok()) return status;
    // What the file system behind the payload cannot do is put there by a file (see Finish).
    status_.Reset(memfd_create("virtio-blk-status", MFD_CLOEXEC));
    const std::array<uint8_t, 3> codes = {VIRTIO_BLK_S_OK, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP};
    if (!status_ || write(status_.get(), codes.data(), codes.size()) != ssize_t{codes.size()}) {
      return sdk::Errno(errno, "memfd");
    }
    ops_.resize(config_.num_queues);
    for (std::vector<Op>& queue : ops_) queue.resize(kQueueSize);
    read_ = host().Counter("bytes_read", "Bytes that the guest read");
    written_ = host().Counter("bytes_written", "Bytes that the guest wrote");
    refused_ = host().Counter("requests_refused", "Requests that were not served");
    if (host().Option(VIRTBAY_OPTION_RESTORES) == "true") return {};
    file_.Reset(open(path_.c_str(), (readonly_ ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK));
    if (!file_) return sdk::Errno(errno, "option file: " + path_);
    Status looked = Look();
    if (!looked.ok()) return looked;
    // That was for what is no file (a FIFO would wait); io_uring takes it as a wish not to wait.
    if (fcntl(file_.get(), F_SETFL, 0) != 0) return sdk::Errno(errno, "option file: " + path_);
    return {};
  }

  Properties GetProperties() const override {
    uint64_t features = Bit(VIRTIO_BLK_F_SEG_MAX) | Bit(VIRTIO_BLK_F_BLK_SIZE) |
                        Bit(VIRTIO_BLK_F_TOPOLOGY) | Bit(VIRTIO_BLK_F_FLUSH);
    if (config_.num_queues > 1) features |= Bit(VIRTIO_BLK_F_MQ);
    features |= readonly_ ? Bit(VIRTIO_BLK_F_RO)
                          : Bit(VIRTIO_BLK_F_DISCARD) | Bit(VIRTIO_BLK_F_WRITE_ZEROES);
    return {
        .queue_count = config_.num_queues, .features = features, .config_size = sizeof(config_)};
  }
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = kQueueSize, .in_view = kHeader + kMaxRanges * kRange, .out_view = kView};
  }

  Status Negotiate(uint64_t features) override {
    // Who cannot flush has to find on the disk what he was told is written (virtio 1.3 5.2.6.2).
    write_flags_ = (features & Bit(VIRTIO_BLK_F_FLUSH)) != 0 ? 0 : RWF_DSYNC;
    return {};
  }

  // A disk is what was written to it last; there is nothing that counts.
  static bool MayRepeat(uint32_t /*queue*/, std::span<const std::byte> /*in*/,
                        uint32_t /*in_total*/, uint32_t /*out_total*/) noexcept {
    return true;
  }

  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config_) + offset, data.size());
    return true;
  }

  void OnRequests(uint32_t queue, std::span<Request> requests) override {
    for (Request& request : requests) Begin(queue, std::move(request));
  }

  void OnIo(uint32_t queue, std::span<const virtbay_io_result> results) override {
    for (const virtbay_io_result& result : results) {
      Op& op = ops_[queue][result.cookie];
      Request request(&host(), result.request);
      if (result.result == -EINTR || result.result == -EAGAIN) {
        Submit(&op, std::move(request));
      } else {
        Progress(&op, std::move(request), result.result);
      }
    }
  }

  // `resize`: looks at the file's size again, and tells the guest.
  sdk::Result<std::string> Control(std::string_view command, std::string_view /*text*/) override {
    if (command != "resize") return sdk::Error{VIRTBAY_UNIMPLEMENTED, 0, "resize"};
    Status status = Look();
    if (!status.ok()) return status.error();
    host().ConfigChanged();
    return std::to_string(config_.capacity * kSector);
  }

  // The same open file goes on, also if its name is another's by now.
  Status Save(sdk::StateWriter* state) override {
    state->AddFd(kFileRole, file_.get());
    return {};
  }
  Status Restore(sdk::StateReader* state) override {
    for (const int fd : state->TakeFds(kFileRole)) file_.Reset(fd);
    if (!file_) return sdk::InvalidArgument("the state has no file");
    if (!readonly_ && (fcntl(file_.get(), F_GETFL) & O_ACCMODE) != O_RDWR) {
      return sdk::InvalidArgument("option readonly: the state's file cannot be written");
    }
    return Look();
  }

 private:
  // A request that has begun; its place is its head, which nobody else has meanwhile.
  struct Op {
    uint16_t queue = 0;
    uint32_t index = 0;
    uint32_t type = 0;
    uint32_t count = 0;   // bytes of payload, or ranges
    uint32_t done = 0;    // of these
    uint32_t step = 0;    // of a range
    uint64_t offset = 0;  // in the file, of the payload
  };

  Status ReadOptions() {
    Status known = sdk::CheckKnown(host(), kOptions);
    if (!known.ok()) return known;
    path_ = host().Option("file").value_or("");
    if (path_.empty()) return sdk::InvalidArgument("option file: missing");
    if (const auto text = host().Option("readonly")) {
      Status parsed = sdk::ParseBool("readonly", *text, &readonly_);
      if (!parsed.ok()) return parsed;
    }
    serial_ = host().Option("serial").value_or("virtbay");
    if (serial_.size() > VIRTIO_BLK_ID_BYTES) {
      return sdk::BadValue("serial", serial_, "of at most 20 characters");
    }
    uint32_t block = kSector;
    uint32_t queues = 1;
    if (const auto text = host().Option("block-size")) {
      Status parsed = sdk::ParseNumber("block-size", *text, 512, 4096, &block);
      if (!parsed.ok()) return parsed;
      if (!std::has_single_bit(block)) return sdk::BadValue("block-size", *text, "a power of two");
    }
    if (const auto text = host().Option("queues")) {
      Status parsed = sdk::ParseNumber("queues", *text, 1, 16, &queues);
      if (!parsed.ok()) return parsed;
    }
    config_.seg_max = kQueueSize - 2;
    config_.blk_size = block;
    config_.physical_block_exp =
        static_cast<uint8_t>(std::countr_zero(std::max(block, 4096u) / block));
    config_.min_io_size = static_cast<uint16_t>(std::max(block, 4096u) / block);
    config_.opt_io_size = 256 * 1024 / block;
    config_.num_queues = static_cast<uint16_t>(queues);
    config_.max_discard_sectors = config_.max_write_zeroes_sectors = kMaxRangeSectors;
    config_.max_discard_seg = config_.max_write_zeroes_seg = kMaxRanges;
    config_.discard_sector_alignment = static_cast<uint32_t>(std::max(block, 4096u) / kSector);
    config_.write_zeroes_may_unmap = 1;
    return {};
  }

  // How large the file is.
  Status Look() {
    struct stat st;
    if (fstat(file_.get(), &st) != 0) return sdk::Errno(errno, "option file: " + path_);
    uint64_t size = static_cast<uint64_t>(st.st_size);
    if (S_ISBLK(st.st_mode)) {
      if (ioctl(file_.get(), BLKGETSIZE64, &size) != 0) return sdk::Errno(errno, path_);
    } else if (!S_ISREG(st.st_mode)) {
      return sdk::InvalidArgument("option file: " + path_ + " is no file and no block device");
    }
    config_.capacity = size / config_.blk_size * (config_.blk_size / kSector);
    // The queues' threads look at it as well.
    __atomic_store_n(&capacity_, config_.capacity, __ATOMIC_RELAXED);
    return {};
  }

  bool Inside(uint64_t sector, uint64_t sectors) const {
    const uint64_t capacity = __atomic_load_n(&capacity_, __ATOMIC_RELAXED);
    return sector <= capacity && sectors <= capacity - sector;
  }

  void Begin(uint32_t queue, Request request) {
    virtio_blk_outhdr header;
    // Without a byte for the status there is no way to answer.
    if (request.out_total() == 0 || request.head() >= kQueueSize) return Refuse(std::move(request));
    if (!request.Read(0, &header)) return Finish(std::move(request), VIRTIO_BLK_S_IOERR);
    Op& op = ops_[queue][request.head()];
    op = Op{.queue = static_cast<uint16_t>(queue), .index = request.head(), .type = header.type};
    const uint32_t in = request.in_total() - kHeader;
    const uint32_t out = request.out_total() - 1;
    switch (header.type) {
      case VIRTIO_BLK_T_IN:
      case VIRTIO_BLK_T_OUT:
        op.count = header.type == VIRTIO_BLK_T_IN ? out : in;
        if (op.count % kSector != 0 || !Inside(header.sector, op.count / kSector) ||
            (header.type == VIRTIO_BLK_T_OUT && readonly_)) {
          return Finish(std::move(request), VIRTIO_BLK_S_IOERR);
        }
        op.offset = header.sector * kSector;
        return Move(&op, std::move(request));
      case VIRTIO_BLK_T_FLUSH:
        op.count = 1;
        return Submit(&op, std::move(request));
      case VIRTIO_BLK_T_GET_ID:
        return GetId(std::move(request), out);
      case VIRTIO_BLK_T_DISCARD:
      case VIRTIO_BLK_T_WRITE_ZEROES: {
        op.count = in / kRange;
        const uint8_t status = CheckRanges(op, request, in);
        if (status != VIRTIO_BLK_S_OK) return Finish(std::move(request), status);
        return Submit(&op, std::move(request));
      }
      default:
        return Finish(std::move(request), VIRTIO_BLK_S_UNSUPP);
    }
  }

  // virtio 1.3 5.2.6.2: every range is looked at before the first one is touched.
  uint8_t CheckRanges(const Op& op, const Request& request, uint32_t bytes) const {
    if (readonly_) return VIRTIO_BLK_S_IOERR;
    if (bytes == 0 || bytes % kRange != 0 || op.count > kMaxRanges) return VIRTIO_BLK_S_IOERR;
    const bool zeroes = op.type == VIRTIO_BLK_T_WRITE_ZEROES;
    const uint32_t flags = zeroes ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
    for (uint32_t i = 0; i < op.count; ++i) {
      const virtio_blk_discard_write_zeroes range = RangeAt(request, i);
      if ((range.flags & ~flags) != 0) return VIRTIO_BLK_S_UNSUPP;
      if (range.num_sectors == 0 || range.num_sectors > kMaxRangeSectors ||
          !Inside(range.sector, range.num_sectors)) {
        return VIRTIO_BLK_S_IOERR;
      }
    }
    return VIRTIO_BLK_S_OK;
  }

  static virtio_blk_discard_write_zeroes RangeAt(const Request& request, uint32_t index) {
    virtio_blk_discard_write_zeroes range = {};
    request.Read(kHeader + index * kRange, &range);
    return range;
  }

  void GetId(Request request, uint32_t room) {
    if (room < VIRTIO_BLK_ID_BYTES) return Finish(std::move(request), VIRTIO_BLK_S_IOERR);
    std::array<char, VIRTIO_BLK_ID_BYTES> id = {};
    std::copy(serial_.begin(), serial_.end(), id.begin());
    request.Write(0, id);
    Finish(std::move(request), VIRTIO_BLK_S_OK, VIRTIO_BLK_ID_BYTES);
  }

  // At once what does not have to wait, the rest by the host.
  void Move(Op* op, Request request) {
    if (op->count == 0) return Finish(std::move(request), VIRTIO_BLK_S_OK);
    const bool in = op->type == VIRTIO_BLK_T_IN;
    int64_t n = -EAGAIN;
    if (in) {
      n = request.ReadNow(file_.get(), op->offset, 0, op->count);
    } else if (write_flags_ == 0) {
      n = request.WriteNow(file_.get(), op->offset, kHeader, op->count);
    }
    if (n <= 0) return Submit(op, std::move(request));
    Progress(op, std::move(request), n);
  }

  void Submit(Op* op, Request request) {
    virtbay_io io = {};
    io.struct_size = sizeof(io);
    io.queue = op->queue;
    io.fd = file_.get();
    io.request = request.get();
    io.cookie = op->index;
    switch (op->type) {
      case VIRTIO_BLK_T_IN:
      case VIRTIO_BLK_T_OUT:
        io.op = op->type == VIRTIO_BLK_T_IN ? VIRTBAY_IO_READ : VIRTBAY_IO_WRITE;
        io.rw_flags = op->type == VIRTIO_BLK_T_IN ? 0 : write_flags_;
        io.payload_offset = op->done + (op->type == VIRTIO_BLK_T_IN ? 0 : kHeader);
        io.payload_len = op->count - op->done;
        io.file_offset = op->offset + op->done;
        break;
      case VIRTIO_BLK_T_FLUSH:
        io.op = VIRTBAY_IO_FSYNC;
        io.arg = 1;
        break;
      default: {
        const virtio_blk_discard_write_zeroes range = RangeAt(request, op->done);
        io.op = VIRTBAY_IO_FALLOCATE;
        io.arg = Mode(*op, range.flags);
        io.file_offset = range.sector * kSector;
        io.length = range.num_sectors * kSector;
        break;
      }
    }
    if (!host().Submit(&io, 1).ok()) return Finish(std::move(request), VIRTIO_BLK_S_IOERR);
    request.Release();
  }

  // Of fallocate. Where a file system cannot zero a range it has a hole punched, which is then
  // filled, unless the guest does not mind.
  static uint32_t Mode(const Op& op, uint32_t flags) {
    const bool hole = op.type == VIRTIO_BLK_T_DISCARD || op.step == 1 ||
                      (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) != 0;
    if (op.step == 2) return FALLOC_FL_KEEP_SIZE;
    return FALLOC_FL_KEEP_SIZE | (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE);
  }

  // `result` of what was submitted, or done at once.
  void Progress(Op* op, Request request, int64_t result) {
    const bool ranges = op->type == VIRTIO_BLK_T_DISCARD || op->type == VIRTIO_BLK_T_WRITE_ZEROES;
    if (ranges) {
      const uint32_t flags = RangeAt(request, op->done).flags;
      if (result == -EOPNOTSUPP && op->type == VIRTIO_BLK_T_WRITE_ZEROES && op->step == 0 &&
          flags == 0) {
        op->step = 1;
        return Submit(op, std::move(request));
      }
      // A discard is a hint.
      if (result == -EOPNOTSUPP && op->type == VIRTIO_BLK_T_DISCARD) result = 0;
      if (result == 0 && op->step == 1) {
        op->step = 2;
        return Submit(op, std::move(request));
      }
      if (result == -EOPNOTSUPP) return Finish(std::move(request), VIRTIO_BLK_S_UNSUPP);
      op->step = 0;
    }
    // Nothing at all: the file has become shorter than it was.
    const bool moves = op->type == VIRTIO_BLK_T_IN || op->type == VIRTIO_BLK_T_OUT;
    if (result < 0 || (moves && result == 0)) {
      return Finish(std::move(request), VIRTIO_BLK_S_IOERR);
    }
    op->done += moves ? static_cast<uint32_t>(result) : 1;
    if (op->done < op->count) return Submit(op, std::move(request));
    if (op->type == VIRTIO_BLK_T_IN) Host::Add(read_, op->done);
    if (op->type == VIRTIO_BLK_T_OUT) Host::Add(written_, op->done);
    Finish(std::move(request), VIRTIO_BLK_S_OK);
  }

  // The status is the last byte that the guest can be given: behind the payload, where nothing but
  // I/O reaches.
  void Finish(Request request, uint8_t status, uint32_t made = 0) {
    if (status != VIRTIO_BLK_S_OK) Host::Add(refused_);
    const uint32_t at = request.out_total() - 1;
    if (at < request.out().size() && at == made) {
      request.Write(at, status);
      return request.Complete(at + 1);
    }
    if (request.ReadBlocking(status_.get(), status, at, 1) != 1) return Refuse(std::move(request));
    request.Complete(made, at + 1);
  }

  void Refuse(Request request) {
    Host::Add(refused_);
    request.Fail();
  }

  std::string path_, serial_;
  bool readonly_ = false;
  virtio_blk_config config_ = {};
  uint64_t capacity_ = 0;  // config_'s, in sectors
  uint32_t write_flags_ = 0;
  sdk::UniqueFd file_;
  sdk::UniqueFd status_;  // the byte at each offset is that status
  std::vector<std::vector<Op>> ops_;
  uint64_t* read_ = nullptr;
  uint64_t* written_ = nullptr;
  uint64_t* refused_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(Blk, "virtio-blk", kVirtioIdBlk, VIRTBAY_DEVICE_QUEUE_PARALLEL);
