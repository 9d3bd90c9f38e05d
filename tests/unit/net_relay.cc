// A network device whose other end is a socket of the test's (net_relay.h). Options: fd, and what
// every network device has; hold=true keeps frames until the device stops; meet=true has each burst
// wait until every pair is in one. Built twice: VIRTBAY_RELAY_FLAGS are those of its device type.
#include "tests/unit/net_relay.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "virtbay/sdk/net_device.h"
#include "virtbay/sdk/plugin.h"

namespace {

using virtbay::sdk::Gso;
using virtbay::sdk::GuestOffloads;
using virtbay::sdk::Host;
using virtbay::sdk::NetConfig;
using virtbay::sdk::NetDevice;
using virtbay::sdk::Offload;
using virtbay::sdk::ReceiveOptions;
using virtbay::sdk::Result;
using virtbay::sdk::RxFrame;
using virtbay::sdk::Status;
using virtbay::sdk::TxFrame;
using virtbay::sdk::TxSlice;
using virtbay::testing::RelayRecord;

class NetRelay final : public NetDevice {
 public:
  static constexpr auto kOptions = virtbay::sdk::NetOptions(std::array{
      virtbay::sdk::MakeOption("fd", VIRTBAY_OPTION_INTEGER),
      virtbay::sdk::MakeOption("hold", VIRTBAY_OPTION_BOOLEAN),
      virtbay::sdk::MakeOption("meet", VIRTBAY_OPTION_BOOLEAN),
  });

  Status Configure(NetConfig* config) override {
    meet_ = host().Option("meet").value_or("false") == "true";
    expected_ = config->queue_pairs;
    met_ = host().Counter("met", "pairs that were in a burst with all others");
    fd_ = std::atoi(host().Option("fd").value_or("-1").c_str());
    hold_ = host().Option("hold").value_or("false") == "true";
    starts_ = host().Counter("pair_starts", "calls");
    stops_ = host().Counter("pair_stops", "calls");
    offload_calls_ = host().Counter("offload_calls", "calls");
    pairs_set_ = host().Gauge("pairs_set", "the last");
    committed_ = host().Counter("committed", "frames");
    refused_ = host().Counter("refused", "frames");
    held_frames_ = host().Gauge("held", "frames");
    alarms_ = host().Counter("alarms", "calls");
    return {};
  }
  Status OnOffloads(const GuestOffloads&) override {
    Host::Add(offload_calls_);
    return {};
  }
  Status OnPairs(uint32_t pairs) override {
    __atomic_store_n(pairs_set_, pairs, __ATOMIC_RELAXED);
    return {};
  }
  void OnPairStart(uint32_t pair) override {
    Host::Add(starts_);
    SetAlarm(pair, std::chrono::milliseconds(1), 7);
  }
  void OnAlarm(uint32_t, uint64_t cookie) override {
    if (cookie == 7) Host::Add(alarms_);
  }
  void OnPairStop(uint32_t pair) override {
    Host::Add(stops_);
    std::deque<TxFrame> held;
    held.swap(held_);
    for (TxFrame& frame : held) {
      frame.pair() == pair ? frame.Requeue() : held_.push_back(std::move(frame));
    }
    __atomic_store_n(held_frames_, held_.size(), __ATOMIC_RELAXED);
  }

  void OnFrames(uint32_t pair, std::span<TxFrame> frames) override {
    if (meet_) return Meet();
    for (TxFrame& frame : frames) {
      if (hold_) {
        held_.push_back(std::move(frame));
        Host::Add(held_frames_);
        continue;
      }
      const Offload& offload = frame.offload();
      RelayRecord record;
      record.needs_csum = offload.needs_csum;
      record.ecn = offload.ecn;
      record.gso = static_cast<uint8_t>(offload.gso);
      record.gso_size = offload.gso_size;
      record.hdr_len = offload.hdr_len;
      record.csum_start = offload.csum_start;
      record.csum_offset = offload.csum_offset;
      record.header_len = static_cast<uint16_t>(frame.headers().size());
      record.pair = static_cast<uint8_t>(pair);
      const std::span<const std::byte> prefix(reinterpret_cast<const std::byte*>(&record),
                                              sizeof(record));
      // The frame in two slices, as a back-end would that strips headers.
      const uint32_t half = frame.size() / 2;
      const TxSlice slices[] = {{&frame, 0, half}, {&frame, half, frame.size() - half}};
      const int64_t n = Send(pair, fd_, slices, {.prefix = prefix});
      std::array<std::byte, 8> tail{};
      const bool copies = frame.Copy(frame.size() - 8, tail) && !frame.Copy(frame.size() - 7, tail);
      if (n != static_cast<int64_t>(sizeof(record) + frame.size()) || !copies) {
        CountTxDrop("relay");
      }
    }
  }

  void OnRxBuffers(uint32_t pair) override {
    if (fd_ >= 0) Receive(pair);
  }
  void OnReady(uint32_t pair, int32_t events) override {
    if (events > 0) Receive(pair);
  }

 private:
  void Meet() {
    std::unique_lock lock(mutex_);
    ++present_;
    present_changed_.notify_all();
    const bool all = present_changed_.wait_for(lock, std::chrono::seconds(60),
                                               [this] { return present_ >= expected_; });
    if (all) Host::Add(met_);
  }

  void Receive(uint32_t pair) {
    for (;;) {
      RelayRecord record;
      const ssize_t n = recv(fd_, &record, sizeof(record), MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT);
      if (n < static_cast<ssize_t>(sizeof(record))) break;
      const auto size = static_cast<uint32_t>(n) - uint32_t{sizeof(record)};
      if (record.pair != pair) return;
      Offload offload;
      offload.needs_csum = record.needs_csum != 0;
      offload.data_valid = record.data_valid != 0;
      offload.ecn = record.ecn != 0;
      offload.gso = static_cast<Gso>(record.gso & 3);
      offload.gso_size = record.gso_size;
      offload.hdr_len = record.hdr_len;
      offload.csum_start = record.csum_start;
      offload.csum_offset = record.csum_offset;
      bool given = false;
      {
        const RxFrame look = BeginFrame(pair, size);
        // OnRxBuffers.
        if (!look || ((record.how & 2) == 0 && look.capacity() < size)) return;
      }
      if ((record.how & 1) != 0) {
        std::vector<std::byte> bytes(sizeof(record) + size);
        static_cast<void>(recv(fd_, bytes.data(), bytes.size(), 0));
        given = SendFrame(pair, std::span(bytes).subspan(sizeof(record)), offload);
      } else {
        RxFrame frame = BeginFrame(pair, size);
        std::vector<std::byte> prefix(sizeof(record) + record.header_len);
        ReceiveOptions options;
        options.prefix = prefix;
        frame.Header(record.header_len);
        if (frame.Receive(fd_, virtbay::sdk::kMaxFrame, &options) < 0) break;
        const std::span<std::byte> header = frame.header();
        std::memcpy(header.data(), prefix.data() + sizeof(record), header.size());
        if ((options.result_flags & MSG_TRUNC) != 0) {
          Host::Add(refused_);
          continue;  // given back
        }
        given = frame.Commit(offload);
      }
      Host::Add(given ? committed_ : refused_);
    }
    Watch(pair, fd_, POLLIN);
  }

  int fd_ = -1;
  bool hold_ = false;
  std::deque<TxFrame> held_;
  uint64_t* starts_ = nullptr;
  uint64_t* stops_ = nullptr;
  uint64_t* offload_calls_ = nullptr;
  uint64_t* pairs_set_ = nullptr;
  uint64_t* committed_ = nullptr;
  uint64_t* refused_ = nullptr;
  uint64_t* held_frames_ = nullptr;
  uint64_t* alarms_ = nullptr;
  bool meet_ = false;
  uint32_t expected_ = 1;
  uint32_t present_ = 0;
  std::mutex mutex_;
  std::condition_variable present_changed_;
  uint64_t* met_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(NetRelay, "net-relay", virtbay::sdk::kVirtioNetId, VIRTBAY_RELAY_FLAGS);
