#include "virtbay/sdk/net_device.h"

#include <poll.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "sdk/net/net_state.h"
#include "virtbay/sdk/option.h"

namespace virtbay::sdk {

namespace {

constexpr uint16_t kStatusLinkUp = 1;
constexpr uint16_t kStatusAnnounce = 2;
constexpr uint32_t kConfigSize = 24;  // with the RSS members, which are zero

// 'text' what.
std::string Quote(std::string_view text, std::string_view what) {
  std::string quoted("'");
  quoted.append(text).append("'").append(what);
  return quoted;
}

Error BadOption(const char* option, const std::string& text) {
  return InvalidArgument(std::string("option ").append(option).append(": ").append(text));
}

Status ReadNumber(const Host& host, const char* option, uint32_t least, uint32_t most,
                  uint32_t* value) {
  const std::optional<std::string> text = host.Option(option);
  if (!text) return {};
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc() || end != text->data() + text->size() || number < least ||
      number > most) {
    std::string what(" is not a number from ");
    what.append(std::to_string(least)).append(" to ").append(std::to_string(most));
    return BadOption(option, Quote(*text, what));
  }
  *value = number;
  return {};
}

Status ReadBoolean(const Host& host, const char* option, bool* value) {
  const std::optional<std::string> text = host.Option(option);
  if (!text) return {};
  const std::optional<bool> flag = BoolOf(*text);
  if (!flag) return BadOption(option, Quote(*text, " is neither true nor false"));
  *value = *flag;
  return {};
}

const char* Flag(bool value) { return value ? "true" : "false"; }

}  // namespace

Result<MacAddress> ParseMac(std::string_view text) {
  MacAddress mac{};
  bool good = text.size() == 17;
  for (size_t i = 0; good && i < 6; ++i) {
    const char* const at = text.data() + 3 * i;
    const auto [end, error] = std::from_chars(at, at + 2, mac[i], 16);
    good = error == std::errc() && end == at + 2 && (i == 5 || at[2] == ':');
  }
  if (!good) {
    return InvalidArgument(Quote(text, " is no address like 52:54:00:12:34:56"));
  }
  if ((mac[0] & 1) != 0 || mac == MacAddress{}) {
    return InvalidArgument(Quote(text, " is no address of an interface"));
  }
  return mac;
}

std::string FormatMac(const MacAddress& mac) {
  std::array<char, 18> text;
  std::snprintf(text.data(), text.size(), "%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2],
                mac[3], mac[4], mac[5]);
  return text.data();
}

GuestOffloads OffloadsOf(uint64_t features) {
  const auto has = [features](uint64_t bit) { return (features & bit) != 0; };
  GuestOffloads takes;
  takes.csum = has(net_feature::kGuestCsum);
  takes.tso4 = takes.csum && has(net_feature::kGuestTso4);
  takes.tso6 = takes.csum && has(net_feature::kGuestTso6);
  takes.ecn = (takes.tso4 || takes.tso6) && has(net_feature::kGuestEcn);
  takes.uso4 = takes.csum && has(net_feature::kGuestUso4);
  takes.uso6 = takes.csum && has(net_feature::kGuestUso6);
  takes.mergeable = has(net_feature::kMergeable);
  return takes;
}

NetDevice::NetDevice() : state_(std::make_unique<State>(this)) {}
NetDevice::~NetDevice() = default;

Result<std::string> NetDevice::OnControl(std::string_view /*command*/, std::string_view /*text*/) {
  return Error{VIRTBAY_UNIMPLEMENTED, 0, "there is no such command, only link, announce and show"};
}

// ---- options and life ---------------------------------------------------------------------------

Status NetDevice::State::ReadOptions() {
  if (const auto text = host().Option("mac")) {
    Result<MacAddress> mac = ParseMac(*text);
    if (!mac.ok()) return BadOption("mac", mac.error().text);
    config.mac = *mac;
  }
  // 68: what every IPv4 link carries (RFC 791).
  Status status = ReadNumber(host(), "mtu", 68, 65535, &config.mtu);
  if (!status.ok()) return status;
  status = ReadNumber(host(), "queue-pairs", 1, kMaxQueuePairs, &config.queue_pairs);
  if (!status.ok()) return status;
  if (const auto text = host().Option("link")) {
    if (*text != "up" && *text != "down") {
      return BadOption("link", Quote(*text, " is neither up nor down"));
    }
    config.link_up = *text == "up";
  }
  bool offloads = true;
  status = ReadBoolean(host(), "offloads", &offloads);
  if (!status.ok()) return status;
  if (!offloads) {
    config.csum = config.tso4 = config.tso6 = config.ecn = config.uso = false;
    config.guest = GuestOffloads{};
    config.guest.mergeable = true;
  }
  status = ReadBoolean(host(), "mergeable", &config.guest.mergeable);
  if (!status.ok()) return status;
  return ReadNumber(host(), "pcap-snaplen", 14, kMaxFrame, &snaplen);
}

void NetDevice::State::MakeCounters() {
  const auto counter = [this](const char* name, const char* help) {
    return host().Counter(name, help);
  };
  tx_frames = counter("tx_frames", "Frames from the guest that the back-end got");
  tx_bytes = counter("tx_bytes", "Their bytes");
  rx_frames = counter("rx_frames", "Frames given to the guest");
  rx_bytes = counter("rx_bytes", "Their bytes");
  rx_merged = counter("rx_merged_buffers", "Buffers of frames that took several");
  capture_drops = counter("pcap_drops", "Frames that the capture left out");
  control_commands = counter("control_commands", "Commands of the guest's driver");
  control_errors = counter("control_errors", "Those that were refused");
  link_changes = counter("link_changes", "Times the link went up or down");
  for (size_t i = 0; i < tx_drops.size(); ++i) {
    const std::string name = std::string("tx_drops_") + TxDropName(static_cast<net::TxDrop>(i));
    tx_drops[i] = counter(name.c_str(), "Frames from the guest that were dropped");
  }
  for (size_t i = 0; i < rx_drops.size(); ++i) {
    const std::string name = std::string("rx_drops_") + RxDropName(static_cast<net::RxDrop>(i));
    rx_drops[i] = counter(name.c_str(), "Frames that were not given to the guest");
  }
}

Status NetDevice::State::OpenCapture(const std::string& path) {
  // A device that goes on goes on with the file.
  auto file = net::CaptureFile::Open(path, /*fresh=*/!device->restores());
  if (!file.ok()) return Errno(file.error().sys_errno, "option pcap: " + path);
  capture_file = std::move(file.value());
  for (Pair& pair : pairs) pair.capture = std::make_unique<net::CaptureBuffer>(capture_file.get());
  // A section of its own: the device may have another address and length than what is there.
  std::vector<std::byte> header;
  net::AppendFileHeader("virtio-net", config.mac, snaplen, &header);
  const int error = capture_file->Begin(std::move(header));
  // A guest that was served is served on, and the capture goes on when it can; so does that of a
  // FIFO that nobody reads yet.
  if (error != 0 && !device->restores() && !capture_file->is_fifo())
    return Errno(error, "option pcap: " + path);
  CaptureOutcome(error);
  return {};
}

Status NetDevice::Init() {
  State& state = *state_;
  const virtbay_queue_service& queue = host().queue_service();
  constexpr size_t kEnd =
      offsetof(virtbay_queue_service, complete_group) + sizeof(queue.complete_group);
  if (!host().HasMessages() || queue.struct_size < kEnd) {
    return Error{VIRTBAY_UNIMPLEMENTED, 0, "network devices need a host of ABI 1.2"};
  }
  Status status = state.ReadOptions();
  if (!status.ok()) return status;
  state.MakeCounters();
  status = Configure(&state.config);
  if (!status.ok()) return status;
  NetConfig& config = state.config;
  if (config.mac == MacAddress{}) {
    std::array<uint8_t, 6> random{};
    if (getrandom(random.data(), random.size(), 0) != static_cast<ssize_t>(random.size())) {
      return Errno(errno, "getrandom");
    }
    config.mac = random;
    config.mac[0] = static_cast<uint8_t>((random[0] & ~1u) | 2u);  // locally administered
  }
  state.link_up.store(config.link_up, std::memory_order_relaxed);
  state.filter.Reset(net::MacKey(config.mac), false);
  state.pairs.resize(config.queue_pairs);
  for (State::Pair& pair : state.pairs) {
    pair.buffers.Reserve(config.queue_size);
    pair.scratch = std::make_unique<std::byte[]>(net::kVnetHeader + kMaxFrame);
  }
  if (const auto path = host().Option("pcap")) {
    status = state.OpenCapture(*path);
    if (!status.ok()) return status;
  }

  using namespace net_feature;  // NOLINT(google-build-using-namespace)
  uint64_t offered = kMac | kMtu | kStatus | kSpeedDuplex | kCtrlVq | kCtrlRx | kCtrlRxExtra |
                     kCtrlVlan | kCtrlMacAddr | kGuestAnnounce;
  const auto offer = [&offered](bool on, uint64_t bit) {
    if (on) offered |= bit;
  };
  offer(config.csum, kCsum);
  offer(config.csum && config.tso4, kHostTso4);
  offer(config.csum && config.tso6, kHostTso6);
  offer(config.csum && (config.tso4 || config.tso6) && config.ecn, kHostEcn);
  offer(config.csum && config.uso, kHostUso);
  const GuestOffloads& guest = config.guest;
  offer(guest.csum, kGuestCsum | kCtrlGuestOffloads);
  offer(guest.csum && guest.tso4, kGuestTso4);
  offer(guest.csum && guest.tso6, kGuestTso6);
  offer(guest.csum && (guest.tso4 || guest.tso6) && guest.ecn, kGuestEcn);
  offer(guest.csum && guest.uso4, kGuestUso4);
  offer(guest.csum && guest.uso6, kGuestUso6);
  offer(guest.mergeable, kMergeable);
  offer(config.queue_pairs > 1, kMq);
  offer(config.in_order, kInOrder);
  state.offered = offered;
  return {};
}

// Queues of pair i are 2i and 2i + 1; the control queue comes last (virtio 1.3 5.1.2).
Properties NetDevice::GetProperties() const {
  return {.queue_count = 2 * state_->config.queue_pairs + 1,
          .features = state_->offered,
          .config_size = kConfigSize};
}

// A control queue needs no views, so that a queue may be either: without MQ it is number 2.
QueueProperties NetDevice::GetQueueProperties(uint32_t queue) const {
  const bool transmit = queue % 2 == 1 && queue < 2 * state_->config.queue_pairs;
  QueueProperties properties;
  properties.max_size = state_->config.queue_size;
  properties.in_view = transmit ? net::kVnetHeader + kHeaderView : 0;
  properties.out_view = 0;
  // The control queue has little to do: a thread of its own would be one too many.
  properties.thread_group = queue == 2 * state_->config.queue_pairs ? 1 : queue / 2 + 1;
  return properties;
}

Status NetDevice::Negotiate(uint64_t features) {
  State& state = *state_;
  state.features = features;
  const auto has = [features](uint64_t bit) { return (features & bit) != 0; };
  state.header_len = has(net_feature::kVersion1 | net_feature::kMergeable) ? net::kVnetHeader
                                                                           : net::kLegacyVnetHeader;
  state.has_control = has(net_feature::kCtrlVq);
  state.control_queue = has(net_feature::kMq) ? 2 * state.config.queue_pairs : 2;
  net::HostOffloads& taken = state.host_offloads;
  taken.csum = has(net_feature::kCsum);
  taken.tso4 = taken.csum && has(net_feature::kHostTso4);
  taken.tso6 = taken.csum && has(net_feature::kHostTso6);
  taken.ecn = has(net_feature::kHostEcn);
  taken.uso = taken.csum && has(net_feature::kHostUso);
  state.filter.Reset(net::MacKey(state.config.mac), has(net_feature::kCtrlVlan));
  net::DriverState driver;
  driver.guest_bits = features & net_feature::kGuestOffloadBits;
  // Another driver than the one that had set it begins with nothing set, as after every reset.
  const auto& restored = state.restored;
  if (restored.has_value() && restored->features == features &&
      restored->queue_pairs == state.config.queue_pairs) {
    driver = *restored;
    state.filter.Set(driver.filter);
    OnMac(net::MacOf(driver.filter.mac));
  }
  state.active_pairs.store(driver.active_pairs, std::memory_order_relaxed);
  state.pairs_set.store(driver.pairs_set, std::memory_order_relaxed);
  state.announce.store(driver.announce, std::memory_order_relaxed);
  state.guest_bits.store(driver.guest_bits, std::memory_order_relaxed);
  const Status status = OnPairs(driver.active_pairs);
  if (!status.ok()) return status;
  return OnOffloads(state.guest());
}

Status NetDevice::Activate() {
  Status status = OnActivate();
  if (!status.ok()) return status;
  state_->active = true;
  state_->restored.reset();
  return {};
}

void NetDevice::Deactivate() {
  state_->active = false;
  OnDeactivate();
  // What a ring that stopped by force has left.
  for (State::Pair& pair : state_->pairs) {
    pair.buffers.Clear();
    pair.started = pair.tx_quiesced = pair.frame_open = false;
    pair.watch_armed = pair.watch_wanted = false;
    pair.starved = true;
  }
}

// ---- configuration space ------------------------------------------------------------------------

uint16_t NetDevice::State::StatusBits() const {
  return static_cast<uint16_t>((link_up.load(std::memory_order_relaxed) ? kStatusLinkUp : 0) |
                               (announce.load(std::memory_order_relaxed) ? kStatusAnnounce : 0));
}

// virtio 1.3 5.1.4, little endian as the machine.
void NetDevice::State::FillConfig(std::span<std::byte, kConfigSize> out) const {
  std::memset(out.data(), 0, out.size());
  const MacAddress mac = net::MacOf(filter.mac());
  const uint16_t status = StatusBits();
  const auto max_pairs = static_cast<uint16_t>(config.queue_pairs);
  const auto mtu = static_cast<uint16_t>(config.mtu);
  const uint8_t duplex = config.speed_mbps == UINT32_MAX ? 0xff : 1;  // unknown or full
  std::memcpy(out.data(), mac.data(), 6);
  std::memcpy(out.data() + 6, &status, 2);
  std::memcpy(out.data() + 8, &max_pairs, 2);
  std::memcpy(out.data() + 10, &mtu, 2);
  std::memcpy(out.data() + 12, &config.speed_mbps, 4);
  std::memcpy(out.data() + 16, &duplex, 1);
}

bool NetDevice::ReadConfig(uint32_t offset, std::span<std::byte> data) {
  std::array<std::byte, kConfigSize> all;
  state_->FillConfig(all);
  if (offset > all.size() || data.size() > all.size() - offset) return false;
  std::memcpy(data.data(), all.data() + offset, data.size());
  return true;
}

void NetDevice::SetLink(bool up) {
  if (state_->link_up.exchange(up, std::memory_order_relaxed) == up) return;
  Host::Add(state_->link_changes);
  host().ConfigChanged();
}

void NetDevice::Announce() {
  if ((state_->features & net_feature::kGuestAnnounce) == 0) return;
  state_->announce.store(true, std::memory_order_relaxed);
  host().ConfigChanged();
}

// ---- the queues ---------------------------------------------------------------------------------

void NetDevice::OnRequests(uint32_t queue, std::span<Request> requests) {
  State& state = *state_;
  if (state.IsControl(queue)) return state.OnControl(requests);
  const uint32_t pair = queue / 2;
  if (pair >= state.pairs.size()) {
    for (Request& request : requests) request.Complete(0);
    return;
  }
  if (queue % 2 == 0) return state.OnReceiveBuffers(pair, requests);
  state.StartPair(pair);
  state.OnTransmit(pair, requests);
}

// What a back-end waits for (watch, alarms, work) belongs to the transmit queue, and so does the
// frame that it may hold: the pair is served from that queue's start to its end. A receive queue
// that stops alone takes its buffers with it and no more.
void NetDevice::State::StartPair(uint32_t index) {
  Pair& pair = pairs[index];
  if (pair.tx_quiesced || std::exchange(pair.started, true)) return;
  device->OnPairStart(index);
  if (pair.buffers.count() == 0) return;
  pair.starved = false;
  device->OnRxBuffers(index);
}

bool NetDevice::State::UsePairs(uint32_t count, bool set) {
  const std::lock_guard lock(pairs_mutex);
  // Buffers of a pair count only until the guest has said how many it uses.
  if (!set && (pairs_set.load(std::memory_order_relaxed) ||
               count <= active_pairs.load(std::memory_order_relaxed))) {
    return true;
  }
  const uint32_t before = active_pairs.exchange(count, std::memory_order_release);
  if (!device->OnPairs(count).ok()) {
    active_pairs.store(before, std::memory_order_release);
    return false;
  }
  if (set) pairs_set.store(true, std::memory_order_relaxed);
  return true;
}

void NetDevice::State::StopPair(uint32_t index) {
  Pair& pair = pairs[index];
  pair.tx_quiesced = true;
  if (!std::exchange(pair.started, false)) return;
  pair.watch_wanted = false;
  if (pair.watch_armed) host().Cancel(event_queue(index), kWatchCookie);
  device->OnPairStop(index);
  if (pair.capture != nullptr) FlushCapture(index);
}

void NetDevice::Quiesce(uint32_t queue) {
  State& state = *state_;
  const uint32_t index = queue / 2;
  if (state.IsControl(queue) || index >= state.pairs.size()) return;
  if (queue % 2 == 1) return state.StopPair(index);
  State::Pair& pair = state.pairs[index];
  for (uint32_t i = 0; i < pair.buffers.count(); ++i) {
    Request(&host(), pair.buffers.at(i)).Requeue();
  }
  pair.buffers.Clear();
  pair.starved = true;
}

void NetDevice::Resume(uint32_t queue) {
  State& state = *state_;
  if (queue % 2 == 0 || queue / 2 >= state.pairs.size()) return;
  state.pairs[queue / 2].tx_quiesced = false;
  state.StartPair(queue / 2);
}

void NetDevice::Farewell(uint32_t queue, uint32_t reason) {
  State& state = *state_;
  const uint32_t index = queue / 2;
  if (state.IsControl(queue) || index >= state.pairs.size() || queue % 2 == 0) return;
  if (state.pairs[index].started) OnFarewell(index, reason);
}

void NetDevice::Watch(uint32_t index, int fd, uint32_t events) {
  State::Pair& pair = state_->pairs[index];
  const bool same = pair.watch_fd == fd && pair.watch_events == events;
  pair.watch_fd = fd;
  pair.watch_events = events;
  pair.watch_wanted = true;
  if (pair.watch_armed) {
    // The result of the one that is cancelled arms the new one.
    if (!same) host().Cancel(state_->event_queue(index), State::kWatchCookie);
    return;
  }
  state_->ArmWatch(index);
}

void NetDevice::State::ArmWatch(uint32_t index) {
  Pair& pair = pairs[index];
  virtbay_io io{};
  io.struct_size = sizeof(io);
  io.op = VIRTBAY_IO_POLL;
  io.queue = static_cast<uint16_t>(event_queue(index));
  io.fd = pair.watch_fd;
  io.arg = pair.watch_events;
  io.cookie = kWatchCookie;
  pair.watch_armed = host().Submit(&io, 1).ok();
}

void NetDevice::OnIo(uint32_t queue, std::span<const virtbay_io_result> results) {
  const uint32_t index = queue / 2;
  State::Pair& pair = state_->pairs[index];
  for (const virtbay_io_result& result : results) {
    if (result.cookie != State::kWatchCookie) continue;
    pair.watch_armed = false;
    if (!pair.watch_wanted) continue;
    if (result.result == -ECANCELED) {
      state_->ArmWatch(index);
      continue;
    }
    pair.watch_wanted = false;
    OnReady(index, result.result);
  }
}

void NetDevice::SetAlarm(uint32_t pair, std::chrono::nanoseconds delay, uint64_t cookie) {
  host().SetTimer(state_->event_queue(pair), delay, cookie);
}

void NetDevice::CancelAlarm(uint32_t pair, uint64_t cookie) {
  host().CancelTimer(state_->event_queue(pair), cookie);
}

void NetDevice::OnTimer(uint32_t queue, uint64_t cookie) {
  if (state_->pairs[queue / 2].started) OnAlarm(queue / 2, cookie);
}

Status NetDevice::OffloadWork(uint32_t pair, void (*work)(void*), void* argument, uint64_t cookie) {
  return host().Offload(state_->event_queue(pair), work, argument, cookie);
}

void NetDevice::OnOffload(uint32_t queue, void* argument, uint64_t cookie) {
  const uint32_t index = queue / 2;
  if (cookie != State::kCaptureCookie) return OnWorkDone(index, argument, cookie);
  const net::CaptureBuffer::Outcome outcome = state_->pairs[index].capture->Done();
  if (outcome.lost != 0) Host::Add(state_->capture_drops, outcome.lost);
  state_->CaptureOutcome(outcome.error);
  state_->FlushCapture(index);
}

// ---- GuestLink ----------------------------------------------------------------------------------

uint32_t NetDevice::pairs() const { return state_->active_pairs.load(std::memory_order_acquire); }
uint32_t NetDevice::mtu() const { return state_->config.mtu; }
GuestOffloads NetDevice::offloads() const { return state_->guest(); }
bool NetDevice::link_up() const { return state_->link_up.load(std::memory_order_relaxed); }
const NetConfig& NetDevice::config() const { return state_->config; }

// ---- counters and capture -----------------------------------------------------------------------

void NetDevice::State::CountBackEndDrop(BackEndDrops* drops, const char* prefix, const char* reason,
                                        uint64_t frames) {
  // Reasons are literals, few, and each is looked up once.
  for (BackEndDrop& drop : *drops) {
    const char* known = drop.reason.load(std::memory_order_acquire);
    if (known == nullptr && drop.reason.compare_exchange_strong(known, reason)) known = reason;
    if (known != reason) continue;
    uint64_t* cell = drop.cell.load(std::memory_order_acquire);
    if (cell == nullptr) {
      // Another pair may look it up as well: a name has one cell.
      const std::string name = std::string(prefix) + reason;
      cell = host().Counter(name.c_str(), "Frames that the back-end could not deliver");
      drop.cell.store(cell, std::memory_order_release);
    }
    Host::Add(cell, frames);
    return;
  }
}

void NetDevice::CountTxDrop(const char* reason, uint64_t frames) {
  state_->CountBackEndDrop(&state_->tx_back_end_drops, "tx_drops_", reason, frames);
}
void NetDevice::CountRxDrop(const char* reason, uint64_t frames) {
  state_->CountBackEndDrop(&state_->rx_back_end_drops, "rx_drops_", reason, frames);
}

void NetDevice::State::Capture(uint32_t index, bool from_guest, std::span<const std::byte> bytes,
                               std::span<const std::byte> more, uint32_t size,
                               std::string_view comment) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  net::CapturedFrame frame;
  frame.realtime_ns =
      static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
  frame.size = size;
  frame.bytes = bytes.first(std::min<size_t>({bytes.size(), snaplen, size}));
  frame.more = more.first(std::min<size_t>(more.size(), snaplen - frame.bytes.size()));
  frame.from_guest = from_guest;
  frame.comment = comment;
  if (!pairs[index].capture->Add(frame)) return Host::Add(capture_drops);
  FlushCapture(index);
}

// Once when it begins and once when it ends: the guest decides how often there is something to
// write.
void NetDevice::State::CaptureOutcome(int error) {
  if (capture_fails.exchange(error != 0, std::memory_order_relaxed) == (error != 0)) return;
  if (error == 0) return host().Log(VIRTBAY_LOG_INFO, "capture: goes on");
  const bool unread = error == ENXIO && capture_file->is_fifo();
  host().Log(VIRTBAY_LOG_WARN, "capture: %s; frames are left out (pcap_drops)",
             unread ? "nobody reads the FIFO" : std::strerror(error));
}

void NetDevice::State::FlushCapture(uint32_t index) {
  net::CaptureBuffer& buffer = *pairs[index].capture;
  if (!buffer.Start()) return;
  const auto write = [](void* argument) { static_cast<net::CaptureBuffer*>(argument)->Write(); };
  if (!host().Offload(event_queue(index), write, &buffer, kCaptureCookie).ok()) {
    buffer.Done();
    Host::Add(capture_drops);
  }
}

// ---- state --------------------------------------------------------------------------------------

namespace {
constexpr uint32_t kLinkSection = uint32_t{1} << 31;
constexpr uint32_t kDriverSection = kLinkSection + 1;
}  // namespace

net::DriverState NetDevice::State::Driver() const {
  net::DriverState driver;
  driver.features = features;
  driver.queue_pairs = config.queue_pairs;
  driver.active_pairs = active_pairs.load(std::memory_order_relaxed);
  driver.pairs_set = pairs_set.load(std::memory_order_relaxed);
  driver.announce = announce.load(std::memory_order_relaxed);
  driver.guest_bits = guest_bits.load(std::memory_order_relaxed);
  driver.filter = filter.Get();
  return driver;
}

bool NetDevice::restores() const { return host().Option(VIRTBAY_OPTION_RESTORES) == "true"; }

Status NetDevice::Save(StateWriter* state) {
  std::array<uint8_t, 7> link{};
  std::copy(config().mac.begin(), config().mac.end(), link.begin());
  link[6] = link_up() ? 1 : 0;
  state->Add(kLinkSection, link.data(), link.size());
  if (state_->active) state->Add(kDriverSection, state_->Driver().Serialize());
  // It was restored, and its driver has not come to it yet.
  if (state_->restored.has_value()) state->Add(kDriverSection, state_->restored->Serialize());
  return OnSave(state);
}

Status NetDevice::Restore(StateReader* state) {
  const auto link = state->Find(kLinkSection);
  if (!link.has_value() || link->size() < 7 || ((*link)[0] & std::byte{1}) != std::byte{0}) {
    return InvalidArgument("the state is none of a network device");
  }
  // The guest knows its interface by it.
  std::memcpy(state_->config.mac.data(), link->data(), 6);
  state_->filter.Reset(net::MacKey(state_->config.mac), false);
  state_->link_up.store(std::to_integer<uint8_t>((*link)[6]) != 0, std::memory_order_relaxed);
  // One that had no driver, or is of before there was this section, has none.
  if (const auto driver = state->Find(kDriverSection); driver.has_value()) {
    state_->restored = net::DriverState::Parse(*driver);
    if (!state_->restored.has_value()) {
      return InvalidArgument("what the state says of the driver is not well formed");
    }
  }
  if (Status status = OnRestore(state); !status.ok()) return status;
  if (!state->all_fds_taken()) {
    return InvalidArgument("the state has descriptors that are for nothing here");
  }
  return {};
}

void NetDevice::Release() { OnRelease(); }

// ---- commands of the host's ---------------------------------------------------------------------

Result<std::string> NetDevice::Control(std::string_view command, std::string_view text) {
  State& state = *state_;
  if (command == "link") {
    if (text != "up" && text != "down") {
      return InvalidArgument(Quote(text, " is neither up nor down"));
    }
    const bool up = text == "up";
    SetLink(up);
    OnLink(up);
    return std::string();
  }
  if (command == "announce") {
    if ((state.features & net_feature::kGuestAnnounce) == 0) {
      return Error{VIRTBAY_FAILED_PRECONDITION, 0, "the guest's driver does not know it"};
    }
    Announce();
    return std::string();
  }
  if (command != "show") return OnControl(command, text);
  const GuestOffloads takes = state.guest();
  std::array<char, 640> json;
  const int n = std::snprintf(
      json.data(), json.size(),
      R"({"mac": "%s", "mtu": %u, "link": "%s", "queue_pairs": %u, "active_pairs": %u, )"
      R"("rx_modes": %u, "guest": {"csum": %s, "tso4": %s, "tso6": %s, "ecn": %s, )"
      R"("uso4": %s, "uso6": %s, "mergeable": %s})",
      FormatMac(net::MacOf(state.filter.mac())).c_str(), state.config.mtu,
      link_up() ? "up" : "down", state.config.queue_pairs, pairs(), state.filter.modes(),
      Flag(takes.csum), Flag(takes.tso4), Flag(takes.tso6), Flag(takes.ecn), Flag(takes.uso4),
      Flag(takes.uso6), Flag(takes.mergeable));
  std::string answer(json.data(), static_cast<size_t>(n));
  const std::string more = OnShow();
  if (!more.empty()) answer.append(", ").append(more);
  answer.append("}");
  return answer;
}

}  // namespace virtbay::sdk
