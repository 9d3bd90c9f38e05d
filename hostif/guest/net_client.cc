#include "hostif/guest/net_client.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::guest {

absl::StatusOr<std::unique_ptr<NetClient>> NetClient::Create(std::unique_ptr<Transport> transport,
                                                             NetClientOptions options) {
  if (options.memory == nullptr) {
    VIRTBAY_ASSIGN_OR_RETURN(options.memory, GuestMemory::Create(uint64_t{64} << 20));
  }
  std::unique_ptr<NetClient> client(new NetClient());
  DriverOptions driver;
  driver.queue_size = options.queue_size;
  driver.indirect_max = options.indirect ? 128 : 0;
  driver.event_idx = options.event_idx;
  driver.packed = options.packed;
  driver.in_order = options.in_order;
  driver.device_features = options.features;
  VIRTBAY_ASSIGN_OR_RETURN(client->driver_,
                           Driver::Create(std::move(transport), std::move(options.memory), driver));
  if ((client->features() & uint64_t{1} << kNetMq) != 0) {
    VIRTBAY_ASSIGN_OR_RETURN(const NetConfigSpace config, client->ReadConfig());
    client->control_queue_ = uint32_t{2} * config.max_pairs;
  }
  for (uint32_t pair = 0; pair < options.rx_pairs && options.rx_buffers > 0; ++pair) {
    VIRTBAY_RETURN_IF_ERROR(client->Post(pair, options.rx_buffers, options.rx_buffer));
  }
  return client;
}

std::vector<Segment> NetClient::Cut(uint64_t address, uint64_t size, uint32_t piece) {
  std::vector<Segment> segments;
  while (size > 0) {
    const auto n = static_cast<uint32_t>(std::min<uint64_t>(size, piece));
    segments.push_back({address, n});
    // A gap keeps neighbours apart.
    address += n + (n < size ? 1 : 0);
    size -= n;
  }
  return segments;
}

absl::Status NetClient::SendRaw(uint32_t pair, absl::string_view bytes, uint32_t piece) {
  CollectSent(pair);
  VIRTBAY_ASSIGN_OR_RETURN(const GuestRange range,
                           driver_->memory().Allocate(2 * bytes.size() + 16));
  const std::vector<Segment> segments = Cut(range.address, bytes.size(), piece);
  size_t done = 0;
  for (const Segment& segment : segments) {
    std::memcpy(range.host + (segment.address - range.address), bytes.data() + done,
                segment.length);
    done += segment.length;
  }
  const uint64_t token = ++last_token_;
  if (!tx(pair).Add(segments, {}, token)) {
    driver_->memory().Free(range);
    return absl::ResourceExhaustedError("the transmit ring is full");
  }
  sent_.emplace(token, range);
  tx(pair).Publish();
  return absl::OkStatus();
}

absl::Status NetClient::Send(uint32_t pair, const NetHeader& header, absl::string_view frame,
                             uint32_t piece) {
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof(header));
  absl::StrAppend(&bytes, frame);
  return SendRaw(pair, bytes, piece);
}

void NetClient::CollectSent(uint32_t pair) {
  std::array<UsedBuffer, 64> used;
  for (size_t n = 0; (n = tx(pair).TakeUsed(used)) > 0;) {
    for (size_t i = 0; i < n; ++i) {
      const auto found = sent_.find(used[i].token);
      if (found == sent_.end()) continue;
      driver_->memory().Free(found->second);
      sent_.erase(found);
    }
  }
}

uint32_t NetClient::Unsent(uint32_t pair) {
  CollectSent(pair);
  return tx(pair).ring().in_flight();
}

absl::Status NetClient::WaitSent(uint32_t pair, absl::Duration timeout) {
  while (Unsent(pair) > 0) VIRTBAY_RETURN_IF_ERROR(tx(pair).Wait(WaitMode::kSleep, timeout));
  return absl::OkStatus();
}

absl::Status NetClient::Post(uint32_t pair, uint32_t count, uint32_t size, uint32_t piece) {
  for (uint32_t i = 0; i < count; ++i) {
    VIRTBAY_ASSIGN_OR_RETURN(const GuestRange range,
                             driver_->memory().Allocate(uint64_t{2} * size + 16));
    const uint64_t token = ++last_token_;
    posted_[token] = Buffer{range, size, piece};
    if (!rx(pair).Add({}, Cut(range.address, size, piece), token)) {
      driver_->memory().Free(range);
      posted_.erase(token);
      return absl::ResourceExhaustedError("the receive ring is full");
    }
  }
  rx(pair).Publish();
  return absl::OkStatus();
}

absl::Status NetClient::Repost(uint32_t pair, uint64_t token) {
  const Buffer& buffer = posted_.at(token);
  if (!rx(pair).Add({}, Cut(buffer.range.address, buffer.size, buffer.piece), token)) {
    return absl::InternalError("no descriptors for a buffer that came back");
  }
  rx(pair).Publish();
  return absl::OkStatus();
}

bool NetClient::HasFrame(uint32_t pair) {
  return !ready_[pair].empty() || rx(pair).ring().HasUsed();
}

absl::StatusOr<NetFrame> NetClient::Receive(uint32_t pair, absl::Duration timeout) {
  std::deque<UsedBuffer>& ready = ready_[pair];
  const auto look = [&] {
    std::array<UsedBuffer, 64> used;
    for (size_t n = 0; (n = rx(pair).TakeUsed(used)) > 0;) {
      ready.insert(ready.end(), used.begin(), used.begin() + static_cast<std::ptrdiff_t>(n));
    }
  };
  look();
  if (ready.empty()) {
    VIRTBAY_RETURN_IF_ERROR(rx(pair).Wait(WaitMode::kSleep, timeout));
    look();
  }
  NetFrame frame;
  uint32_t wanted = 1;
  std::string error;
  while (frame.buffers < wanted) {
    if (ready.empty()) {
      // All or none (virtio 1.3 5.1.6.4).
      return absl::DataLossError(
          absl::StrCat("only ", frame.buffers, " of ", wanted, " buffers of a frame were there"));
    }
    const UsedBuffer used = ready.front();
    ready.pop_front();
    const Buffer& buffer = posted_.at(used.token);
    std::string bytes;
    uint32_t left = std::min(used.written, buffer.size);
    for (const Segment& segment : Cut(buffer.range.address, buffer.size, buffer.piece)) {
      const uint32_t n = std::min(left, segment.length);
      bytes.append(reinterpret_cast<const char*>(buffer.range.host) +
                       (segment.address - buffer.range.address),
                   n);
      left -= n;
    }
    if (used.written > buffer.size) error = "more was written than a buffer takes";
    if (++frame.buffers == 1) {
      if (bytes.size() < sizeof(frame.header)) {
        error = absl::StrCat("a buffer of ", bytes.size(), " bytes came back");
      } else {
        std::memcpy(&frame.header, bytes.data(), sizeof(frame.header));
        wanted = std::max<uint32_t>(1, frame.header.num_buffers);
        frame.data = bytes.substr(sizeof(frame.header));
      }
    } else {
      if (used.written == 0) error = "an empty buffer in a frame";
      frame.data += bytes;
    }
    VIRTBAY_RETURN_IF_ERROR(Repost(pair, used.token));
    if (!error.empty()) return absl::DataLossError(error);
  }
  return frame;
}

absl::StatusOr<int> NetClient::CommandRaw(absl::string_view bytes, uint32_t room) {
  VIRTBAY_ASSIGN_OR_RETURN(const GuestRange range,
                           driver_->memory().Allocate(bytes.size() + room + 16));
  std::memcpy(range.host, bytes.data(), bytes.size());
  std::memset(range.host + bytes.size(), 0xff, room);
  const Segment in{range.address, static_cast<uint32_t>(bytes.size())};
  const Segment out{range.address + bytes.size(), room};
  const uint64_t token = ++last_token_;
  int ack = -1;
  absl::Status status = absl::OkStatus();
  if (!control().Add({&in, bytes.empty() ? 0u : 1u}, {&out, room > 0 ? 1u : 0u}, token)) {
    status = absl::ResourceExhaustedError("the control ring is full");
  } else {
    control().Publish();
    status = control().Wait(WaitMode::kSleep, absl::Seconds(60));
    std::array<UsedBuffer, 1> used;
    if (status.ok() && control().TakeUsed(used) == 1 && used[0].written >= 1) {
      ack = std::to_integer<int>(range.host[bytes.size()]);
    }
  }
  driver_->memory().Free(range);
  if (!status.ok()) return status;
  return ack;
}

absl::StatusOr<uint8_t> NetClient::Command(uint8_t group, uint8_t command, absl::string_view data) {
  std::string bytes{static_cast<char>(group), static_cast<char>(command)};
  absl::StrAppend(&bytes, data);
  VIRTBAY_ASSIGN_OR_RETURN(const int ack, CommandRaw(bytes, 1));
  if (ack < 0) return absl::DataLossError("a command without an ack");
  return static_cast<uint8_t>(ack);
}

absl::StatusOr<NetConfigSpace> NetClient::ReadConfig() {
  std::array<std::byte, sizeof(NetConfigSpace)> bytes{};
  VIRTBAY_RETURN_IF_ERROR(driver_->transport().ReadConfig(0, bytes));
  NetConfigSpace config;
  std::memcpy(&config, bytes.data(), sizeof(config));
  return config;
}

}  // namespace virtbay::guest
