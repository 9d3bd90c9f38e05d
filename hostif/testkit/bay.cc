#include "virtbay/testkit/bay.h"

#include <poll.h>

#include <optional>
#include <utility>

#include "hostif/guest/driver.h"
#include "hostif/guest/in_process_transport.h"
#include "hostif/testkit/buffers.h"
#include "hostif/testkit/log_lines.h"
#include "virtbay/host.h"

namespace virtbay::testkit {
namespace {

constexpr char kName[] = "device";
// Bits of the device type (virtio 1.3 2.2); the others are the driver's own options.
constexpr uint64_t kTypeBits = 0xffffffull | ~uint64_t{0} << 50;

sdk::Error ErrorOf(const absl::Status& status) {
  return {status.raw_code(), 0, std::string(status.message())};
}
sdk::Status StatusOf(const absl::Status& status) {
  if (status.ok()) return {};
  return ErrorOf(status);
}

}  // namespace

struct Bay::Impl {
  explicit Impl(BayOptions wanted) : options(std::move(wanted)) {}
  ~Impl() {
    driver.reset();
    host.reset();
  }

  DeviceSpec Spec() const {
    DeviceSpec spec;
    spec.name = kName;
    spec.plugin = options.plugin;
    spec.type = options.type;
    spec.options = options.options;
    spec.arena_size = 4u << 20;
    spec.one_thread = options.one_thread;
    return spec;
  }

  absl::Status Connect() {
    VIRTBAY_ASSIGN_OR_RETURN(auto transport, guest::InProcessTransport::Attach(device));
    VIRTBAY_ASSIGN_OR_RETURN(auto memory, guest::GuestMemory::Create(options.memory));
    guest::DriverOptions how;
    how.queue_size = options.queue_size;
    how.packed = options.packed;
    how.event_idx = options.event_idx;
    how.device_features = options.features & kTypeBits;
    VIRTBAY_ASSIGN_OR_RETURN(driver,
                             guest::Driver::Create(std::move(transport), std::move(memory), how));
    buffers.emplace(driver.get());
    return absl::OkStatus();
  }

  BayOptions options;
  LogLines lines{LogLevel::kDebug};
  std::unique_ptr<Host> host;
  DeviceHandle device;
  std::unique_ptr<guest::Driver> driver;
  std::optional<Buffers> buffers;
};

Bay::Bay(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Bay::~Bay() = default;

sdk::Result<std::unique_ptr<Bay>> Bay::Create(BayOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  HostOptions host_options;
  host_options.log = impl->lines.log();
  auto host = Host::Create(std::move(host_options));
  if (!host.ok()) return ErrorOf(host.status());
  impl->host = *std::move(host);
  auto device = impl->host->Add(impl->Spec());
  if (!device.ok()) return ErrorOf(device.status());
  impl->device = *std::move(device);
  const absl::Status connected = impl->Connect();
  if (!connected.ok()) return ErrorOf(connected);
  return std::unique_ptr<Bay>(new Bay(std::move(impl)));
}

uint64_t Bay::Send(std::string_view readable, uint32_t room, uint32_t queue) {
  const auto in = static_cast<uint32_t>(readable.size());
  return SendPieces(readable, {&in, in > 0 ? 1u : 0u}, {&room, room > 0 ? 1u : 0u}, queue);
}

uint64_t Bay::SendPieces(std::string_view readable, std::span<const uint32_t> in,
                         std::span<const uint32_t> out, uint32_t queue) {
  if (queue >= queue_count()) return 0;
  // Makes room where something has come back.
  Has(0, queue);
  const uint64_t token = impl_->buffers->Add(queue, readable, in, out);
  if (token != 0) impl_->driver->queue(queue).Publish();
  return token;
}

bool Bay::Has(uint64_t token, uint32_t queue) {
  return queue < queue_count() && impl_->buffers->Has(token, queue);
}

sdk::Result<Reply> Bay::Take(uint64_t token, uint32_t queue, uint32_t seconds) {
  if (token == 0) return sdk::Error{VIRTBAY_RESOURCE_EXHAUSTED, 0, "it was not sent"};
  if (queue >= queue_count()) return sdk::InvalidArgument("there is no such queue");
  while (!Has(token, queue)) {
    const absl::Status waited =
        impl_->driver->queue(queue).Wait(guest::WaitMode::kSleep, absl::Seconds(seconds));
    if (!waited.ok()) return ErrorOf(waited);
  }
  Buffers::Taken taken = impl_->buffers->Take(token);
  return Reply{taken.written, std::move(taken.bytes)};
}

sdk::Result<Reply> Bay::Call(std::string_view readable, uint32_t room, uint32_t queue) {
  return Take(Send(readable, room, queue), queue);
}

sdk::Status Bay::ReadConfig(uint32_t offset, void* data, uint32_t size) {
  return StatusOf(
      impl_->driver->transport().ReadConfig(offset, {static_cast<std::byte*>(data), size}));
}

sdk::Status Bay::WriteConfig(uint32_t offset, const void* data, uint32_t size) {
  return StatusOf(
      impl_->driver->transport().WriteConfig(offset, {static_cast<const std::byte*>(data), size}));
}

bool Bay::WaitForConfigChange(uint32_t seconds) {
  guest::Transport& transport = impl_->driver->transport();
  pollfd look{.fd = transport.config_fd(), .events = POLLIN, .revents = 0};
  return poll(&look, 1, static_cast<int>(seconds) * 1000) == 1 &&
         transport.TakeConfigChanges().value_or(0) > 0;
}

uint64_t Bay::features() const { return impl_->driver->features(); }
uint32_t Bay::queue_count() const { return impl_->driver->queue_count(); }

bool Bay::needs_reset() {
  const auto status = impl_->driver->transport().GetStatus();
  return !status.ok() || (*status & kStatusNeedsReset) != 0;
}

std::string Bay::failure() const {
  const auto info = impl_->device.Inspect();
  return info.ok() ? info->failure : std::string(info.status().message());
}

sdk::Status Bay::Stop() { return StatusOf(impl_->driver->Stop()); }
sdk::Status Bay::Start() { return StatusOf(impl_->driver->Start()); }

sdk::Status Bay::Reset() {
  const absl::Status restarted = impl_->driver->Restart();
  impl_->buffers->Forget();
  return StatusOf(restarted);
}

sdk::Status Bay::HandOver(std::map<std::string, std::string> options) {
  auto state = impl_->device.Save();
  if (!state.ok()) return ErrorOf(state.status());
  impl_->buffers.reset();
  impl_->driver.reset();
  const absl::Status removed = impl_->host->Remove(kName);
  if (!removed.ok()) return ErrorOf(removed);
  impl_->options.options = std::move(options);
  auto device = impl_->host->Add(impl_->Spec(), *std::move(state));
  if (!device.ok()) return ErrorOf(device.status());
  impl_->device = *std::move(device);
  return StatusOf(impl_->Connect());
}

sdk::Result<std::string> Bay::Control(const std::string& command, std::string_view text) {
  auto answer = impl_->device.Control(command, {text.data(), text.size()});
  if (!answer.ok()) return ErrorOf(answer.status());
  return *std::move(answer);
}

uint64_t Bay::taken() const {
  uint64_t sum = 0;
  if (const auto info = impl_->device.Inspect(); info.ok()) {
    for (const QueueStats& queue : info->queues) sum += queue.requests;
  }
  return sum;
}

uint64_t Bay::Metric(const std::string& name) const {
  const auto info = impl_->device.Inspect();
  if (!info.ok()) return ~uint64_t{0};
  const auto found = info->metrics.find(name);
  return found == info->metrics.end() ? ~uint64_t{0} : found->second;
}

std::vector<std::string> Bay::log() const { return impl_->lines.lines(); }

}  // namespace virtbay::testkit
