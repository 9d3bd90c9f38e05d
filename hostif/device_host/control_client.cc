#include "hostif/device_host/control_client.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/report.h"
#include "hostif/device_host/unix_socket.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

// Thousands of devices fit; a peer that is not ours cannot fill the memory.
constexpr size_t kMaxAnswer = 256 << 20;

// A process that ends, or hands over to its successor, answers what it has begun and closes the
// rest.
absl::Status Failed(int error, absl::string_view what) {
  if (error != EPIPE && error != ECONNRESET) return ErrnoStatus(error, what);
  return absl::UnavailableError("closed without an answer: the service ends, or is replaced");
}

absl::Status SendAll(int fd, const std::string& text) {
  size_t sent = 0;
  while (sent < text.size()) {
    const ssize_t n = ::send(fd, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Failed(errno, "send");
    sent += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReceiveLine(int fd) {
  std::string line;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return Failed(n == 0 ? ECONNRESET : errno, "receive");
    line.append(buffer.data(), static_cast<size_t>(n));
    if (line.back() == '\n') {
      line.pop_back();
      return line;
    }
    if (line.size() > kMaxAnswer) return absl::UnavailableError("the answer is too long");
  }
}

absl::StatusCode CodeFromName(const std::string& name) {
  for (int i = 1; i <= 16; ++i) {
    const auto code = static_cast<absl::StatusCode>(i);
    if (absl::StatusCodeToString(code) == name) return code;
  }
  return absl::StatusCode::kUnknown;
}

}  // namespace

absl::StatusOr<ControlConnection> ControlConnection::Open(const std::string& socket) {
  VIRTBAY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectUnix(socket));
  return ControlConnection(socket, std::move(fd));
}

void ControlConnection::Wait(absl::Duration duration) const {
  const absl::Time end = absl::Now() + duration;
  for (absl::Duration left = duration; left > absl::ZeroDuration(); left = end - absl::Now()) {
    const timespec limit = absl::ToTimespec(left);
    pollfd closed = {fd_.get(), POLLRDHUP, 0};
    if (::ppoll(&closed, 1, &limit, nullptr) > 0) return;
  }
}

absl::StatusOr<json> CallControl(const std::string& socket, const json& request) {
  VIRTBAY_ASSIGN_OR_RETURN(ControlConnection connection, ControlConnection::Open(socket));
  return connection.Call(request);
}

absl::StatusOr<json> ControlConnection::Call(const json& request) {
  const std::string where = absl::StrCat("control socket ", socket_);
  const absl::Status sent = SendAll(fd_.get(), ToLine(request) + "\n");
  if (!sent.ok()) return Annotate(sent, where);
  const absl::StatusOr<std::string> line = ReceiveLine(fd_.get());
  if (!line.ok()) return Annotate(line.status(), where);
  const json answer = json::parse(*line, nullptr, /*allow_exceptions=*/false);
  if (!answer.is_object() || !answer.contains("ok") || !answer["ok"].is_boolean()) {
    return absl::UnavailableError(absl::StrCat(where, ": the answer is not virtbay's"));
  }
  if (answer["ok"].get<bool>()) return answer.value("result", json());
  std::string message = "failed";
  std::string code;
  if (const auto error = answer.find("error"); error != answer.end() && error->is_object()) {
    if (const auto it = error->find("message"); it != error->end() && it->is_string()) {
      message = it->get<std::string>();
    }
    if (const auto it = error->find("code"); it != error->end() && it->is_string()) {
      code = it->get<std::string>();
    }
  }
  return absl::Status(CodeFromName(code), message);
}

std::string DefaultControlSocket() {
  if (const char* named = std::getenv("VIRTBAY_CONTROL_SOCKET"); named != nullptr) return named;
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr) {
    return absl::StrCat(runtime, "/virtbay.sock");
  }
  return "/run/virtbay.sock";
}

}  // namespace virtbay::device_host
