#include "hostif/guest/fuse_queue.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::guest {
namespace {

// Offsets in a slot's small range: the headers in cache lines of their own.
constexpr uint64_t kHeaderAt = 0;
constexpr uint64_t kOutHeaderAt = 64;
constexpr uint64_t kArgsAt = 128;
constexpr uint64_t kOutArgsAt = kArgsAt + FuseSlot::kArgsSize;
constexpr uint64_t kSmallSize = kOutArgsAt + FuseSlot::kArgsSize;

// Pages of a data area that follow the two segments in front, cut to `len` bytes.
size_t PageCount(uint32_t len, uint32_t page_size) { return (len + page_size - 1) / page_size; }

}  // namespace

FuseSlot& FuseSlot::Begin(uint32_t opcode, uint64_t nodeid) {
  args_size_ = send_data_ = reply_args_ = reply_data_ = reply_size_ = written_ = 0;
  extension_size_ = 0;
  error_ = 0;
  no_reply_ = too_long_ = raw_ = done_ = false;
  *header_ = fuse_in_header{};
  header_->opcode = opcode;
  header_->nodeid = nodeid;
  return *this;
}

FuseSlot& FuseSlot::PutBytes(std::span<const std::byte> bytes) {
  if (bytes.size() > kArgsSize - args_size_) {
    too_long_ = true;
    return *this;
  }
  if (!bytes.empty()) std::memcpy(args_ + args_size_, bytes.data(), bytes.size());
  args_size_ += static_cast<uint32_t>(bytes.size());
  return *this;
}

FuseSlot& FuseSlot::PutName(std::string_view name) {
  PutBytes(std::as_bytes(std::span(name.data(), name.size())));
  return Put('\0');
}

FuseSlot& FuseSlot::PutGroups() {
  if (caller_ == nullptr || caller_->groups.empty()) return *this;
  // Right behind the name, as Linux puts it: the request's end, not its beginning, is what the
  // extension's length in 8-byte units is counted from.
  const std::vector<uint32_t>& groups = caller_->groups;
  const uint32_t bare = static_cast<uint32_t>(sizeof(FuseExtHeader) + 4 + 4 * groups.size());
  const uint32_t size = (bare + 7) / 8 * 8;
  Put(FuseExtHeader{.size = size, .type = kFuseExtGroups});
  Put(static_cast<uint32_t>(groups.size()));
  PutBytes(std::as_bytes(std::span(groups)));
  for (uint32_t i = bare; i < size; ++i) Put('\0');
  extension_size_ = static_cast<uint16_t>(size / 8);
  return *this;
}

std::span<const std::byte> FuseSlot::reply_data() const {
  const uint32_t in_data = reply_size_ > reply_args_ ? reply_size_ - reply_args_ : 0;
  return {data_.host, std::min<size_t>(in_data, data_.size)};
}

absl::StatusOr<std::unique_ptr<FuseQueue>> FuseQueue::Create(Driver* driver, uint32_t queue,
                                                             const FuseQueueOptions& options) {
  if (queue >= driver->queue_count()) {
    return absl::InvalidArgumentError(absl::StrCat("the driver has no queue ", queue));
  }
  if (options.depth == 0 || options.page_size == 0) {
    return absl::InvalidArgumentError("a FUSE queue needs a depth and a page size");
  }
  std::unique_ptr<FuseQueue> fuse(new FuseQueue(driver, queue, options));
  const size_t most = PageCount(options.max_data, options.page_size) + 4;
  if (most > fuse->queue_->ring().size()) {
    return absl::InvalidArgumentError(absl::StrCat("a request of ", options.max_data,
                                                   " bytes needs ", most, " descriptors, queue ",
                                                   queue, " has ", fuse->queue_->ring().size()));
  }
  fuse->free_.reserve(options.depth);
  fuse->done_.reserve(options.depth);
  for (uint32_t i = 0; i < options.depth; ++i) VIRTBAY_RETURN_IF_ERROR(fuse->MakeSlot(i));
  return fuse;
}

FuseQueue::~FuseQueue() {
  for (const auto& slot : slots_) {
    // A device may still write to a request in flight: its memory is not given to anyone else.
    if (slot->in_flight_) continue;
    driver_->memory().Free(slot->small_);
    if (slot->data_.size != 0) driver_->memory().Free(slot->data_);
  }
}

absl::Status FuseQueue::MakeSlot(uint32_t index) {
  auto slot = std::make_unique<FuseSlot>();
  slot->index_ = index;
  VIRTBAY_ASSIGN_OR_RETURN(slot->small_, driver_->memory().Allocate(kSmallSize, 64));
  if (options_.max_data != 0) {
    VIRTBAY_ASSIGN_OR_RETURN(slot->data_, driver_->memory().Allocate(options_.max_data, 4096));
  }
  std::byte* const base = slot->small_.host;
  slot->header_ = reinterpret_cast<fuse_in_header*>(base + kHeaderAt);
  slot->args_ = base + kArgsAt;
  slot->out_header_ = reinterpret_cast<fuse_out_header*>(base + kOutHeaderAt);
  slot->out_args_ = base + kOutArgsAt;
  const size_t pages = PageCount(options_.max_data, options_.page_size);
  slot->readable_.resize(2 + pages);
  slot->writable_.resize(2 + pages);
  for (size_t i = 0; i < pages; ++i) {
    const uint64_t offset = i * uint64_t{options_.page_size};
    const Segment page{.address = slot->data_.address + offset, .length = options_.page_size};
    slot->readable_[2 + i] = page;
    slot->writable_[2 + i] = page;
  }
  slot->caller_ = &caller_;
  free_.push_back(slot.get());
  slots_.push_back(std::move(slot));
  return absl::OkStatus();
}

FuseSlot* FuseQueue::Acquire() {
  if (free_.empty()) return nullptr;
  FuseSlot* const slot = free_.back();
  free_.pop_back();
  slot->caller_ = &caller_;
  return slot;
}

void FuseQueue::Release(FuseSlot* slot) {
  if (slot == nullptr) return;
  // A request that timed out keeps its slot until the device gives it back.
  if (slot->in_flight_) {
    slot->given_up_ = true;
    return;
  }
  free_.push_back(slot);
}

absl::Status FuseQueue::Submit(FuseSlot* slot) {
  if (slot->too_long_ || slot->reply_args_ > FuseSlot::kArgsSize ||
      slot->send_data_ > options_.max_data || slot->reply_data_ > options_.max_data) {
    return absl::InvalidArgumentError("the FUSE request or its reply is too long for a slot");
  }
  fuse_in_header* const header = slot->header_;
  // Even numbers, as the kernel's, and the queue in the upper half keeps them apart.
  next_unique_ += 2;
  slot->unique_ = (uint64_t{queue_index_} << 32) | (next_unique_ & 0xffff'ffff);
  header->unique = slot->unique_;
  header->len = static_cast<uint32_t>(sizeof(fuse_in_header)) + slot->args_size_ + slot->send_data_;
  header->uid = slot->caller_->uid;
  header->gid = slot->caller_->gid;
  header->pid = slot->caller_->pid;
  header->total_extlen = slot->extension_size_;

  // Header and arguments (or the header alone) end where the pages begin.
  const auto build = [this](std::vector<Segment>& segments, Segment head, Segment args,
                            uint32_t data) -> std::span<const Segment> {
    const size_t first = args.length != 0 ? 0 : 1;
    segments[first] = head;
    if (args.length != 0) segments[1] = args;
    const size_t pages = PageCount(data, options_.page_size);
    if (pages != 0) {
      segments[1 + pages].length = data - static_cast<uint32_t>(pages - 1) * options_.page_size;
    }
    return std::span(segments).subspan(first, 2 - first + pages);
  };
  const uint64_t base = slot->small_.address;
  const auto readable = build(
      slot->readable_, Segment{base + kHeaderAt, static_cast<uint32_t>(sizeof(fuse_in_header))},
      Segment{base + kArgsAt, slot->args_size_}, slot->send_data_);
  std::span<const Segment> writable;
  if (!slot->no_reply_) {
    // So that a device that answers nothing is not taken for one that repeats its last answer.
    *slot->out_header_ = fuse_out_header{};
    writable = build(slot->writable_,
                     Segment{base + kOutHeaderAt, static_cast<uint32_t>(sizeof(fuse_out_header))},
                     Segment{base + kOutArgsAt, slot->reply_args_}, slot->reply_data_);
  }
  const bool added = queue_->Add(readable, writable, slot->index_);
  const auto restore = [this](std::vector<Segment>& segments, uint32_t data) {
    const size_t pages = PageCount(data, options_.page_size);
    if (pages != 0) segments[1 + pages].length = options_.page_size;
  };
  restore(slot->readable_, slot->send_data_);
  restore(slot->writable_, slot->reply_data_);
  if (!added) return absl::ResourceExhaustedError("the ring has no room for the FUSE request");
  slot->in_flight_ = true;
  return absl::OkStatus();
}

absl::Status FuseQueue::SubmitRaw(FuseSlot* slot, std::span<const Segment> readable,
                                  std::span<const Segment> writable) {
  slot->raw_ = true;
  slot->done_ = false;
  slot->error_ = 0;
  slot->reply_size_ = 0;
  if (!queue_->Add(readable, writable, slot->index_)) {
    return absl::ResourceExhaustedError("the ring has no room for the chain");
  }
  slot->in_flight_ = true;
  return absl::OkStatus();
}

void FuseQueue::Finish(FuseSlot* slot, uint32_t written) {
  slot->in_flight_ = false;
  slot->done_ = true;
  slot->written_ = written;
  if (slot->raw_ || slot->no_reply_) return;
  const fuse_out_header header = *slot->out_header_;
  const uint32_t room =
      static_cast<uint32_t>(sizeof(header)) + slot->reply_args_ + slot->reply_data_;
  if (written < sizeof(header) || header.len < sizeof(header) || header.len > written ||
      written > room || header.unique != slot->unique_ || header.error > 0 ||
      header.error <= -4096) {
    slot->error_ = -EPROTO;
    return;
  }
  slot->error_ = -header.error;
  slot->reply_size_ = header.len - static_cast<uint32_t>(sizeof(header));
}

void FuseQueue::Collect() {
  std::array<UsedBuffer, 32> used;
  for (;;) {
    const size_t n = queue_->TakeUsed(used);
    for (size_t i = 0; i < n; ++i) {
      FuseSlot* const slot = slots_[used[i].token].get();
      Finish(slot, used[i].written);
      (std::exchange(slot->given_up_, false) ? free_ : done_).push_back(slot);
    }
    if (n < used.size()) return;
  }
}

size_t FuseQueue::Reap(std::span<FuseSlot*> slots) {
  Collect();
  const size_t n = std::min(slots.size(), done_.size());
  std::copy_n(done_.begin(), n, slots.begin());
  done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(n));
  return n;
}

absl::Status FuseQueue::Wait() {
  if (!done_.empty()) return absl::OkStatus();
  if (in_flight() == 0) return absl::FailedPreconditionError("no FUSE request is in flight");
  return WaitForUsed();
}

absl::Status FuseQueue::WaitForUsed() {
  for (;;) {
    const absl::Status status =
        queue_->Wait(options_.wait, options_.timeout, driver_->transport().hangup_fd());
    if (!absl::IsUnavailable(status) || options_.reconnect == nullptr) return status;
    VIRTBAY_RETURN_IF_ERROR(options_.reconnect());
  }
}

absl::Status FuseQueue::Call(FuseSlot* slot) {
  VIRTBAY_RETURN_IF_ERROR(Submit(slot));
  Flush();
  return Await(slot);
}

absl::Status FuseQueue::Await(FuseSlot* slot) {
  for (;;) {
    Collect();
    if (slot->done_) {
      done_.erase(std::find(done_.begin(), done_.end(), slot));
      slot->done_ = false;
      return absl::OkStatus();
    }
    if (!slot->in_flight_) return absl::FailedPreconditionError("the request is not in flight");
    VIRTBAY_RETURN_IF_ERROR(WaitForUsed());
  }
}

void FuseQueue::Abandon() {
  done_.clear();
  free_.clear();
  for (const auto& slot : slots_) {
    slot->in_flight_ = slot->done_ = slot->given_up_ = false;
    free_.push_back(slot.get());
  }
}

}  // namespace virtbay::guest
