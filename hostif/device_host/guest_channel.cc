#include "hostif/device_host/guest_channel.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "framework/base/status.h"
#include "hostif/device_host/control_protocol.h"
#include "hostif/device_host/report.h"
#include "hostif/swiotlb/guest_report.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::device_host {
namespace {

constexpr int kRetryAcceptMs = 100;
// A guest can connect as often as it likes; it must not fill the log.
constexpr uint32_t kMaxWarnings = 8;

}  // namespace

absl::StatusOr<std::unique_ptr<GuestChannel>> GuestChannel::Create(const GuestAddress& address,
                                                                   ControlTarget* target) {
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return ErrnoStatus(errno, "eventfd");
  VIRTBAY_ASSIGN_OR_RETURN(GuestListener listener, ListenForGuest(address));
  return std::unique_ptr<GuestChannel>(
      new GuestChannel(address, std::move(listener), std::move(wake), target));
}

GuestChannel::GuestChannel(GuestAddress where, GuestListener listener, UniqueFd wake,
                           ControlTarget* target)
    : where_(std::move(where)),
      listener_(std::move(listener)),
      wake_(std::move(wake)),
      target_(target) {
  target_->log().Info(absl::StrCat("waiting for the guest's report at ", listener_.address));
  loop_ = std::thread([this] { Loop(); });
}

GuestChannel::~GuestChannel() {
  RemoveSocket();
  ::eventfd_write(wake_.get(), 1);
  loop_.join();
}

void GuestChannel::Loop() {
  std::vector<pollfd> polled;
  bool accepting = true;
  for (;;) {
    polled.clear();
    polled.push_back({wake_.get(), POLLIN, 0});
    // Out of descriptors: the connection stays in the backlog and would be reported for ever.
    polled.push_back({accepting ? listener_.socket.fd.get() : -1, POLLIN, 0});
    for (const Connection& connection : connections_) {
      const short events = connection.out.empty() ? POLLIN : POLLOUT;
      polled.push_back({connection.fd.get(), events, 0});
    }
    if (::poll(polled.data(), polled.size(), accepting ? -1 : kRetryAcceptMs) < 0) {
      if (errno == EINTR) continue;
      // Only a lack of memory is left; the service goes on without the guest's report.
      target_->log().Error(ErrnoStatus(errno, "guest channel: poll").ToString());
      return;
    }
    if (polled[0].revents != 0) return;
    accepting = true;
    size_t i = 2;
    for (auto it = connections_.begin(); it != connections_.end(); ++i) {
      const short events = polled[i].revents;
      bool keep = true;
      if (events != 0) keep = it->out.empty() ? Receive(&*it) : SendSome(&*it) && Next(&*it);
      it = keep ? std::next(it) : connections_.erase(it);
    }
    if (polled[1].revents != 0) accepting = Accept();
  }
}

bool GuestChannel::Accept() {
  for (;;) {
    UniqueFd fd(
        ::accept4(listener_.socket.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    if (!MayReport(where_, fd)) {
      Refused(absl::PermissionDeniedError("a connection from another guest than the one named"));
      continue;
    }
    if (connections_.size() >= kMaxConnections) connections_.pop_front();
    Connection connection;
    connection.fd = std::move(fd);
    connections_.push_back(std::move(connection));
  }
}

bool GuestChannel::Receive(Connection* connection) {
  std::array<char, 16384> buffer;
  const ssize_t n = ::recv(connection->fd.get(), buffer.data(), buffer.size(), 0);
  if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  if (n == 0) {
    connection->closing = true;
    // Whoever sends one line may close that direction instead of ending the line.
    if (!connection->in.empty()) connection->in.push_back('\n');
  }
  connection->in.append(buffer.data(), static_cast<size_t>(n));
  return Next(connection);
}

bool GuestChannel::Next(Connection* connection) {
  std::string& in = connection->in;
  size_t at = 0;
  bool keep = true;
  while (keep && connection->out.empty()) {
    const size_t end = in.find('\n', at);
    if (end != std::string::npos) {
      connection->out = Report(absl::string_view(in).substr(at, end - at)) + "\n";
      at = end + 1;
    } else if (in.size() - at > swiotlb::kMaxReportLine && !connection->closing) {
      // Refused as soon as that is known.
      connection->out = Report(absl::string_view(in).substr(at)) + "\n";
      connection->closing = true;
      at = in.size();
    } else {
      keep = !connection->closing;
      break;
    }
    keep = SendSome(connection);
  }
  in.erase(0, at);
  return keep;
}

bool GuestChannel::SendSome(Connection* connection) {
  const ssize_t n = ::send(connection->fd.get(), connection->out.data() + connection->sent,
                           connection->out.size() - connection->sent, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  connection->sent += static_cast<size_t>(n);
  if (connection->sent == connection->out.size()) {
    connection->out.clear();
    connection->sent = 0;
  }
  return true;
}

std::string GuestChannel::Report(absl::string_view line) {
  const absl::StatusOr<swiotlb::GuestReport> report = swiotlb::ParseGuestReport(line);
  const absl::Status applied =
      report.ok() ? target_->ApplyGuest(report->capabilities) : report.status();
  if (!applied.ok()) {
    Refused(applied);
    return ControlErrorLine(applied, nullptr);
  }
  if (!told_) {
    told_ = true;
    if (!report->reason.empty()) {
      target_->log().Info(absl::StrCat("guest channel: the guest says: ", report->reason));
    }
    for (const swiotlb::RestrictedPool& pool : report->restricted) {
      if (!pool.pool.has_value()) continue;
      target_->log().Info(
          absl::StrCat("guest channel: ", pool.node, " is a pool for ",
                       pool.devices.empty() ? "no device" : absl::StrJoin(pool.devices, ", "),
                       ": swiotlb=", swiotlb::FormatOption(*pool.pool)));
    }
  }
  const swiotlb::GuestCapabilities& pool = report->capabilities;
  const std::string location = pool.swiotlb_size == 0
                                   ? "none"
                                   : swiotlb::FormatOption({pool.swiotlb_base, pool.swiotlb_size});
  return ToLine({{"ok", true}, {"result", {{"swiotlb", location}}}});
}

void GuestChannel::Refused(const absl::Status& status) {
  if (refused_ >= kMaxWarnings) {
    target_->log().Debug(absl::StrCat("guest channel: ", status.message()));
    return;
  }
  target_->log().Warn(
      absl::StrCat("guest channel: ", status.message(),
                   ++refused_ == kMaxWarnings ? " (no more of these is said)" : ""));
}

}  // namespace virtbay::device_host
