// virtio-console (virtio 1.3 5.3): one port, whose other end is the guest itself (echo) or a
// pseudo-terminal of the host. Shows queues that hold requests until there is something for them,
// bytes that go between a file and the guest without being looked at, and polling.
#include <fcntl.h>
#include <linux/virtio_console.h>
#include <poll.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <deque>
#include <string>
#include <utility>

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

static_assert(std::endian::native == std::endian::little,
              "the configuration space is little-endian");

constexpr uint32_t kVirtioIdConsole = 3;
constexpr uint32_t kReceive = 0;   // to the guest
constexpr uint32_t kTransmit = 1;  // from it
// A guest's console driver spins until its bytes are taken: what the other end does not take for
// so long is dropped.
constexpr std::chrono::milliseconds kPatience{250};
constexpr uint32_t kInRole = 1;  // of a saved state's descriptors
constexpr uint32_t kOutRole = 2;
constexpr uint32_t kSlaveRole = 3;

class Console final : public Device {
 public:
  static constexpr std::array kOptions = {
      sdk::MakeOption("backend", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("link", VIRTBAY_OPTION_TEXT),
      sdk::MakeOption("columns", VIRTBAY_OPTION_INTEGER),
      sdk::MakeOption("rows", VIRTBAY_OPTION_INTEGER),
  };

  ~Console() override {
    if (linked_) unlink(link_.c_str());
  }

  Status Init() override {
    Status known = sdk::CheckKnown(host(), kOptions);
    if (!known.ok()) return known;
    const std::string backend = host().Option("backend").value_or("echo");
    pty_ = backend == "pty";
    if (!pty_ && backend != "echo") return sdk::BadValue("backend", backend, "echo or pty");
    link_ = host().Option("link").value_or("");
    if (!pty_ && !link_.empty()) {
      return sdk::InvalidArgument("option link: there is a terminal with backend=pty only");
    }
    uint32_t columns = 80;
    uint32_t rows = 25;
    for (auto [key, value] : {std::pair{"columns", &columns}, std::pair{"rows", &rows}}) {
      const auto text = host().Option(key);
      if (!text.has_value()) continue;
      Status parsed = sdk::ParseNumber(key, *text, 1, 65535, value);
      if (!parsed.ok()) return parsed;
    }
    config_.cols = static_cast<uint16_t>(columns);
    config_.rows = static_cast<uint16_t>(rows);
    to_guest_ = host().Counter("bytes_to_guest", "Bytes that the guest was given");
    from_guest_ = host().Counter("bytes_from_guest", "Bytes that the other end took");
    dropped_ = host().Counter("bytes_dropped", "Bytes from the guest that nobody took in time");
    // What is restored brings its descriptors.
    if (host().Option(VIRTBAY_OPTION_RESTORES) == "true") return {};
    return pty_ ? OpenPty() : OpenEcho();
  }

  Properties GetProperties() const override {
    return {.queue_count = 2,
            .features = 1u << VIRTIO_CONSOLE_F_SIZE | 1u << VIRTIO_CONSOLE_F_EMERG_WRITE,
            .config_size = sizeof(config_)};
  }
  // The bytes go past the plugin: no views.
  QueueProperties GetQueueProperties(uint32_t /*queue*/) const override {
    return {.max_size = 256, .in_view = 0, .out_view = 0};
  }

  bool ReadConfig(uint32_t offset, std::span<std::byte> data) override {
    std::memcpy(data.data(), reinterpret_cast<const std::byte*>(&config_) + offset, data.size());
    return true;
  }
  // emerg_wr: a character without queues or a driver (virtio 1.3 5.3.4).
  bool WriteConfig(uint32_t offset, std::span<const std::byte> data) override {
    if (offset != offsetof(virtio_console_config, emerg_wr) || data.empty()) return false;
    if (write(out_fd(), data.data(), 1) != 1) Host::Add(dropped_);
    return true;
  }

  void OnRequests(uint32_t queue, std::span<Request> requests) override {
    for (Request& request : requests) {
      (queue == kReceive ? receive_ : transmit_).push_back(std::move(request));
    }
    queue == kReceive ? FillGuest() : DrainGuest();
  }

  // The cookie is the queue that waits.
  void OnIo(uint32_t queue, std::span<const virtbay_io_result> results) override {
    for (const virtbay_io_result& result : results) watched_[result.cookie] = false;
    queue == kReceive ? FillGuest() : DrainGuest();
  }

  void OnTimer(uint32_t queue, uint64_t /*cookie*/) override {
    if (queue != kTransmit || transmit_.empty()) return;
    deaf_ = true;
    DrainGuest();
  }

  void Quiesce(uint32_t queue) override {
    if (watched_[queue]) host().Cancel(queue, queue);
    if (queue == kReceive) {
      while (!receive_.empty()) Pop(&receive_).Requeue();
      return;
    }
    host().CancelTimer(queue, 0);
    // The bytes that were taken must not come twice.
    if (sent_ > 0) Drop();
    while (!transmit_.empty()) Pop(&transmit_).Requeue();
  }

  // `path`: of the terminal. `resize COLUMNSxROWS`: the guest is told (virtio 1.3 5.3.5).
  sdk::Result<std::string> Control(std::string_view command, std::string_view text) override {
    if (command == "path" && pty_) return path_;
    if (command != "resize") return sdk::Error{VIRTBAY_UNIMPLEMENTED, 0, "path (of a pty), resize"};
    const size_t cross = text.find('x');
    const auto columns = sdk::NumberOf(text.substr(0, cross));
    const auto rows = cross == text.npos ? columns : sdk::NumberOf(text.substr(cross + 1));
    if (cross == text.npos || !columns || !rows || *columns > 65535 || *rows > 65535) {
      return sdk::InvalidArgument("resize: not COLUMNSxROWS");
    }
    config_.cols = static_cast<uint16_t>(*columns);
    config_.rows = static_cast<uint16_t>(*rows);
    host().ConfigChanged();
    return std::string();
  }

  Status Save(sdk::StateWriter* state) override {
    state->AddFd(kInRole, in_.get());
    if (out_) state->AddFd(kOutRole, out_.get());
    if (slave_) state->AddFd(kSlaveRole, slave_.get());
    state->Add(1, &config_, sizeof(config_));
    state->Add(2, path_.data(), path_.size());
    return {};
  }
  Status Restore(sdk::StateReader* state) override {
    const auto config = state->Find(1);
    const auto path = state->Find(2);
    if (!config || config->size() != sizeof(config_) || !path) {
      return sdk::InvalidArgument("not the state of a console");
    }
    std::memcpy(&config_, config->data(), sizeof(config_));
    path_.assign(reinterpret_cast<const char*>(path->data()), path->size());
    for (auto [role, fd] :
         {std::pair{kInRole, &in_}, std::pair{kOutRole, &out_}, std::pair{kSlaveRole, &slave_}}) {
      for (const int taken : state->TakeFds(role)) fd->Reset(taken);
    }
    if (!in_ || static_cast<bool>(slave_) != pty_ || static_cast<bool>(out_) == pty_) {
      return sdk::InvalidArgument("the state is of another back-end");
    }
    return pty_ ? Link() : Status();
  }
  // The link is the next one's now.
  void Release() override { linked_ = false; }

 private:
  int out_fd() const { return out_ ? out_.get() : in_.get(); }

  Status OpenEcho() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return sdk::Errno(errno, "pipe");
    in_.Reset(ends[0]);
    out_.Reset(ends[1]);
    return {};
  }

  Status OpenPty() {
    in_.Reset(posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK));
    char name[128];
    if (!in_ || grantpt(in_.get()) != 0 || unlockpt(in_.get()) != 0 ||
        ptsname_r(in_.get(), name, sizeof(name)) != 0) {
      return sdk::Errno(errno, "pseudo-terminal");
    }
    path_ = name;
    // Kept open, so that the terminal outlives those who look at it.
    slave_.Reset(open(name, O_RDWR | O_NOCTTY | O_CLOEXEC));
    termios raw;
    if (!slave_ || tcgetattr(slave_.get(), &raw) != 0) return sdk::Errno(errno, path_);
    cfmakeraw(&raw);
    if (tcsetattr(slave_.get(), TCSANOW, &raw) != 0) return sdk::Errno(errno, path_);
    host().Log(VIRTBAY_LOG_INFO, "the guest's console is %s", path_.c_str());
    return Link();
  }

  // Only a link of an earlier run is replaced, nothing else.
  Status Link() {
    if (link_.empty()) return {};
    char before[128];
    if (readlink(link_.c_str(), before, sizeof(before)) > 0) unlink(link_.c_str());
    if (symlink(path_.c_str(), link_.c_str()) != 0) {
      return sdk::Errno(errno, "option link: " + link_);
    }
    linked_ = true;
    return {};
  }

  static Request Pop(std::deque<Request>* requests) {
    Request request = std::move(requests->front());
    requests->pop_front();
    return request;
  }

  virtbay_message Message(int fd, const virtbay_slice* slice) const {
    virtbay_message message = {};
    message.struct_size = sizeof(message);
    message.fd = fd;
    message.kind = VIRTBAY_MESSAGE_FILE;
    message.slices = slice;
    message.slice_count = 1;
    return message;
  }

  void FillGuest() {
    while (!receive_.empty()) {
      const virtbay_slice slice = {receive_.front().get(), 0, receive_.front().out_total()};
      virtbay_message message = Message(in_.get(), &slice);
      // A buffer without room can take nothing: it would stay for ever.
      const int64_t n = slice.len == 0 ? 0 : host().Receive(kReceive, &message);
      if (n == -EAGAIN || (n == 0 && slice.len > 0)) return Watch(kReceive, in_.get(), POLLIN);
      if (n < 0) {
        Pop(&receive_).Fail();
        continue;
      }
      Host::Add(to_guest_, static_cast<uint64_t>(n));
      Pop(&receive_).Complete(0, static_cast<uint32_t>(n));
    }
  }

  void DrainGuest() {
    while (!transmit_.empty()) {
      const uint32_t total = transmit_.front().in_total();
      const virtbay_slice slice = {transmit_.front().get(), sent_, total - sent_};
      const virtbay_message message = Message(out_fd(), &slice);
      const int64_t n = slice.len == 0 ? 0 : host().Send(kTransmit, message);
      if (n == -EAGAIN && !deaf_) {
        host().SetTimer(kTransmit, kPatience, 0);
        return Watch(kTransmit, out_fd(), POLLOUT);
      }
      if (n < 0) {
        Drop();
        continue;
      }
      Host::Add(from_guest_, static_cast<uint64_t>(n));
      sent_ += static_cast<uint32_t>(n);
      if (sent_ < total) continue;
      sent_ = 0;
      deaf_ = false;
      Pop(&transmit_).Complete(0);
    }
    host().CancelTimer(kTransmit, 0);
  }

  // The rest of the first request from the guest.
  void Drop() {
    Host::Add(dropped_, transmit_.front().in_total() - std::exchange(sent_, 0));
    Pop(&transmit_).Complete(0);
  }

  void Watch(uint32_t queue, int fd, uint32_t events) {
    if (watched_[queue]) return;
    virtbay_io io = {};
    io.struct_size = sizeof(io);
    io.op = VIRTBAY_IO_POLL;
    io.queue = static_cast<uint16_t>(queue);
    io.fd = fd;
    io.arg = events;
    io.cookie = queue;
    watched_[queue] = host().Submit(&io, 1).ok();
  }

  bool pty_ = false;
  std::string link_, path_;
  bool linked_ = false;
  virtio_console_config config_ = {};
  sdk::UniqueFd in_, out_, slave_;  // a terminal's master is `in_` alone
  std::deque<Request> receive_, transmit_;
  uint32_t sent_ = 0;  // of the first one in transmit_
  bool deaf_ = false;  // the other end did not take the last one in time
  std::array<bool, 2> watched_ = {};
  uint64_t* to_guest_ = nullptr;
  uint64_t* from_guest_ = nullptr;
  uint64_t* dropped_ = nullptr;
};

}  // namespace

VIRTBAY_PLUGIN(Console, "virtio-console", kVirtioIdConsole, 0);
