#include "framework/virtq/in_flight_log.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay {
namespace {

absl::Status Wild(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("in-flight log: ", what));
}

// The region as it is now, in private storage.
template <typename Header, typename Entry>
struct Snapshot {
  Header header{};
  std::vector<Entry> entries;

  bool anything_in_flight() const {
    return std::any_of(entries.begin(), entries.end(),
                       [](const Entry& entry) { return entry.in_flight != 0; });
  }
};

template <typename Header, typename Entry>
absl::StatusOr<Snapshot<Header, Entry>> Read(const SharedArea& area, uint16_t size) {
  if (area.size < sizeof(Header) + sizeof(Entry) * uint64_t{size} ||
      reinterpret_cast<uintptr_t>(area.data()) % alignof(uint64_t) != 0) {
    return Wild(absl::StrCat(area.size, " bytes are not one of ", size, " descriptors"));
  }
  Snapshot<Header, Entry> snapshot;
  snapshot.entries.resize(size);
  std::memcpy(&snapshot.header, area.data(), sizeof(Header));
  std::memcpy(snapshot.entries.data(), area.data() + sizeof(Header), sizeof(Entry) * size);
  if (area.poisoned()) return Wild("its file was truncated");
  if (snapshot.header.version > kInFlightLogVersion) {
    return Wild(absl::StrCat("version ", snapshot.header.version, " is unknown"));
  }
  return snapshot;
}

template <typename Header, typename Entry>
void Write(const Snapshot<Header, Entry>& snapshot, const SharedArea& area) {
  // The version says that the rest is there, so it comes last.
  Header header = snapshot.header;
  header.version = 0;
  std::memcpy(area.data(), &header, sizeof(Header));
  std::memcpy(area.data() + sizeof(Header), snapshot.entries.data(),
              sizeof(Entry) * snapshot.entries.size());
  std::atomic_ref<uint16_t>(reinterpret_cast<Header*>(area.data())->version)
      .store(kInFlightLogVersion, std::memory_order_release);
}

using SplitSnapshot = Snapshot<SplitLogHeader, SplitLogEntry>;
using PackedSnapshotOfLog = Snapshot<PackedLogHeader, PackedLogEntry>;

// The heads of `log` that are in flight, in the order of their counters.
template <typename Entries>
std::vector<uint16_t> InOrder(const Entries& entries) {
  std::vector<uint16_t> order;
  for (size_t i = 0; i < entries.size(); ++i) {
    if (entries[i].in_flight != 0) order.push_back(static_cast<uint16_t>(i));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](uint16_t a, uint16_t b) { return entries[a].counter < entries[b].counter; });
  return order;
}

// Takes out of flight what was given back last, if the process ended before it could.
absl::Status EndLastBatch(uint16_t used_index, SplitSnapshot* log) {
  const auto batch = static_cast<uint16_t>(used_index - log->header.used_index);
  uint16_t head = log->header.last_batch_head;
  for (uint16_t i = 0; i < batch; ++i) {
    if (head >= log->entries.size() || log->entries[head].in_flight == 0) {
      return Wild(absl::StrCat("used index ", log->header.used_index, " and the ring's, ",
                               used_index, ", do not fit the batch between them"));
    }
    log->entries[head].in_flight = 0;
    head = log->entries[head].next;
  }
  log->header.used_index = used_index;
  return absl::OkStatus();
}

// A batch is written from behind, and the driver sees it by its first place. Where the process
// ended before that, the places behind look used, and would be taken for that once the first one
// is.
void HideUnshown(const PackedRingMemory& ring, PackedCursor at, uint16_t count) {
  for (; count > 0; --count, at.Advance(1, ring.size)) {
    const uint16_t flags = ring.Flags(at.index, std::memory_order_relaxed);
    if (((flags & kPackedAvail) != 0) != at.wrap || ((flags & kPackedUsed) != 0) != at.wrap) {
      continue;
    }
    const auto bare = static_cast<uint16_t>(flags & ~(kPackedAvail | kPackedUsed));
    std::atomic_ref<uint16_t>(ring.descriptors[at.index].flags)
        .store(static_cast<uint16_t>(bare | (at.wrap ? kPackedAvail : kPackedUsed)),
               std::memory_order_release);
  }
}

}  // namespace

uint64_t InFlightLogSize(bool packed, uint16_t descriptors) {
  const uint64_t size =
      packed ? sizeof(PackedLogHeader) + sizeof(PackedLogEntry) * uint64_t{descriptors}
             : sizeof(SplitLogHeader) + sizeof(SplitLogEntry) * uint64_t{descriptors};
  return (size + kInFlightLogAlignment - 1) & ~(kInFlightLogAlignment - 1);
}

void ForgetInFlight(const SharedArea& area) {
  static_assert(offsetof(SplitLogHeader, version) == offsetof(PackedLogHeader, version));
  if (!area || area.size < sizeof(SplitLogHeader)) return;
  // The rest is made when it is used: an area that is mostly a hole stays one.
  std::byte* const version = area.data() + offsetof(SplitLogHeader, version);
  std::atomic_ref<uint16_t>(*reinterpret_cast<uint16_t*>(version))
      .store(0, std::memory_order_release);
}

absl::StatusOr<SplitLog> SplitLog::Open(const SharedArea& area, const SplitRingMemory& ring,
                                        uint32_t* position, std::vector<Pending>* pending) {
  pending->clear();
  VIRTBAY_ASSIGN_OR_RETURN(SplitSnapshot log,
                           (Read<SplitLogHeader, SplitLogEntry>(area, ring.size)));
  const uint16_t used_index = ring.used_index();
  const bool busy = log.anything_in_flight();
  const bool fits =
      log.header.descriptors == ring.size && (busy || log.header.used_index == used_index);
  const bool known = log.header.version != 0 && (busy || fits);
  if (!known) {
    // Of a ring that was made anew in the place of one that had ended, nothing is known either.
    log = SplitSnapshot{.header = {}, .entries = std::vector<SplitLogEntry>(ring.size)};
    log.header.descriptors = ring.size;
    log.header.used_index = used_index;
  } else {
    if (!fits) return Wild(absl::StrCat("it is one of ", log.header.descriptors, " descriptors"));
    VIRTBAY_RETURN_IF_ERROR(EndLastBatch(used_index, &log));
    for (const uint16_t head : InOrder(log.entries)) pending->push_back(Pending{head});
    *position = static_cast<uint16_t>(used_index + pending->size()) | uint32_t{used_index} << 16;
  }
  SplitLog result;
  result.goes_on_ = known;
  // Counted anew, so that no counter of a front-end's choice comes near its end.
  for (const Pending& one : *pending) log.entries[one.head].counter = result.counter_++;
  log.header.features = 0;
  if (log.header.last_batch_head >= ring.size) log.header.last_batch_head = 0;
  Write(log, area);
  result.header_ = reinterpret_cast<SplitLogHeader*>(area.data());
  result.entries_ = reinterpret_cast<SplitLogEntry*>(area.data() + sizeof(SplitLogHeader));
  result.last_batch_head_ = log.header.last_batch_head;
  result.batch_.reserve(ring.size);
  return result;
}

absl::StatusOr<PackedLog> PackedLog::Open(const SharedArea& area, const PackedRingMemory& ring,
                                          uint32_t* position, std::vector<Pending>* pending) {
  pending->clear();
  const uint16_t size = ring.size;
  VIRTBAY_ASSIGN_OR_RETURN(PackedSnapshotOfLog log,
                           (Read<PackedLogHeader, PackedLogEntry>(area, size)));
  PackedLogHeader& header = log.header;
  const bool busy = log.anything_in_flight();
  if (header.version != 0 && busy && header.descriptors != size) {
    return Wild(absl::StrCat("it is one of ", header.descriptors, " descriptors"));
  }
  PackedLog result;
  result.entries_.resize(size);
  result.entry_of_id_.assign(size, kNone);
  result.batch_.reserve(size);
  if (header.version == 0 || header.descriptors != size) {
    log = PackedSnapshotOfLog{.header = {}, .entries = std::vector<PackedLogEntry>(size)};
    for (uint16_t i = 0; i < size; ++i) {
      log.entries[i].next = result.entries_[i].next = static_cast<uint16_t>(i + 1);
    }
    header.descriptors = size;
    result.shown_ = static_cast<uint16_t>(*position >> 16);
  } else {
    result.goes_on_ = true;
    if (header.used_index >= size || header.old_used_index >= size || header.used_wrap > 1 ||
        header.old_used_wrap > 1) {
      return Wild("a place beyond the ring");
    }
    // What was to be given back last was, if the driver sees the first of it; else the process
    // ended before that, or in the middle of taking a chain.
    const uint16_t flags = ring.Flags(header.old_used_index, std::memory_order_relaxed);
    const bool wrap = header.old_used_wrap != 0;
    const bool shown =
        ((flags & kPackedAvail) != 0) == wrap && ((flags & kPackedUsed) != 0) == wrap;
    if (shown) {
      header.old_free_head = header.free_head;
      header.old_used_index = header.used_index;
      header.old_used_wrap = header.used_wrap;
    } else {
      header.free_head = header.old_free_head;
      header.used_index = header.old_used_index;
      header.used_wrap = header.old_used_wrap;
    }
    std::vector<bool> seen(size);
    uint32_t known = 0;
    for (uint16_t at = header.free_head; at < size; at = log.entries[at].next) {
      if (seen[at]) return Wild("a circle of free entries");
      seen[at] = true;
      ++known;
      log.entries[at].in_flight = 0;
      result.entries_[at].next = log.entries[at].next;
    }
    uint16_t held = 0;
    for (const uint16_t first : InOrder(log.entries)) {
      const PackedLogEntry& head = log.entries[first];
      Pending chain;
      uint16_t at = first;
      for (uint16_t i = 0; i < head.count; ++i) {
        const bool last = i + 1 == head.count;
        if (i > 0) at = log.entries[at].next;
        if (at >= size || seen[at] || (last && at != head.last)) return Wild("a broken chain");
        seen[at] = true;
        ++known;
        const PackedLogEntry& entry = log.entries[at];
        if (((entry.flags & VRING_DESC_F_NEXT) != 0) == last) return Wild("a broken chain");
        result.entries_[at].next = entry.next;
        chain.descriptors.push_back(
            PackedSnapshot{entry.address, entry.len, entry.id, entry.flags});
        chain.head = entry.id;
      }
      if (head.count == 0 || chain.head >= size || result.entry_of_id_[chain.head] != kNone) {
        return Wild("a chain without a buffer id of its own");
      }
      result.entries_[first].last = head.last;
      result.entry_of_id_[chain.head] = first;
      held = static_cast<uint16_t>(held + head.count);
      log.entries[first].counter = result.counter_++;
      pending->push_back(std::move(chain));
    }
    if (known != size) return Wild("entries that are neither free nor in flight");
    PackedCursor avail{header.used_index, header.used_wrap != 0};
    result.shown_ = avail.Encode();
    HideUnshown(ring, avail, held);
    avail.Advance(held, size);
    *position = avail.Encode() | uint32_t{result.shown_} << 16;
  }
  header.features = 0;
  const PackedCursor used = PackedCursor::Decode(result.shown_);
  header.used_index = header.old_used_index = used.index;
  header.used_wrap = header.old_used_wrap = used.wrap ? 1 : 0;
  Write(log, area);
  result.free_head_ = result.old_free_head_ = header.free_head;
  result.base_ = area.data();
  result.shared_ = reinterpret_cast<PackedLogEntry*>(area.data() + sizeof(PackedLogHeader));
  return result;
}

void PackedLog::StoreHeads(uint16_t free_head, uint16_t old_free_head) {
  uint32_t word = 0;
  const std::array<uint16_t, 2> heads{free_head, old_free_head};
  std::memcpy(&word, heads.data(), sizeof word);
  Store(*reinterpret_cast<uint32_t*>(base_ + offsetof(PackedLogHeader, free_head)), word);
}

void PackedLog::StorePlaces(uint16_t used, uint16_t old_used) {
  const PackedCursor now = PackedCursor::Decode(used);
  const PackedCursor before = PackedCursor::Decode(old_used);
  PackedLogHeader header{};
  header.used_index = now.index;
  header.old_used_index = before.index;
  header.used_wrap = now.wrap ? 1 : 0;
  header.old_used_wrap = before.wrap ? 1 : 0;
  uint64_t word = 0;
  std::memcpy(&word, &header.used_index, sizeof word);
  Store(*reinterpret_cast<uint64_t*>(base_ + offsetof(PackedLogHeader, used_index)), word);
}

void PackedLog::TakeChain(std::span<const PackedSnapshot> chain, uint16_t id) {
  const uint16_t first = free_head_;
  uint16_t last = first;
  uint16_t next = first;
  for (const PackedSnapshot& d : chain) {
    // A ring that breaks may hold ids twice and so outgrow its log.
    if (next >= entries_.size()) return;
    last = next;
    PackedLogEntry& entry = shared_[last];
    Store(entry.address, d.address);
    Store(entry.len, d.len);
    Store(entry.id, d.id);
    Store(entry.flags, d.flags);
    next = entries_[last].next;
  }
  PackedLogEntry& head = shared_[first];
  Store(head.last, last);
  Store(head.count, static_cast<uint16_t>(chain.size()));
  Store(head.counter, counter_++);
  Store(head.in_flight, uint8_t{1});
  entries_[first].last = last;
  entry_of_id_[id] = first;
  free_head_ = old_free_head_ = next;
  StoreHeads(free_head_, old_free_head_);
}

void PackedLog::Put(const UsedEntry& used) {
  const uint16_t first = entry_of_id_[used.head];
  // The front-end has changed its log under a ring that went on.
  if (first == kNone) return;
  entry_of_id_[used.head] = kNone;
  const uint16_t last = entries_[first].last;
  entries_[last].next = free_head_;
  Store(shared_[last].next, free_head_);
  free_head_ = first;
  StoreHeads(free_head_, old_free_head_);
  batch_.push_back(first);
}

void PackedLog::AfterShow(uint32_t position) {
  for (const uint16_t first : batch_) Store(shared_[first].in_flight, uint8_t{0});
  batch_.clear();
  old_free_head_ = free_head_;
  StoreHeads(free_head_, old_free_head_);
  shown_ = static_cast<uint16_t>(position >> 16);
  StorePlaces(shown_, shown_);
}

}  // namespace virtbay
