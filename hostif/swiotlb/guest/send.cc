#include "hostif/swiotlb/guest/send.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <utility>

#include "hostif/swiotlb/guest/file.h"

namespace virtbay::guest_tool {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMaxAnswer = 64 << 10;  // bytes
constexpr std::chrono::milliseconds kRetry{50};
constexpr size_t kMaxPortName = 256;  // bytes

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

std::string Reason(const char* what, int error) {
  return std::string(what) + ": " + std::strerror(error);
}

std::optional<unsigned> Number(std::string_view text, unsigned limit) {
  unsigned value = 0;
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (text.empty() || result.ec != std::errc() || result.ptr != end || value > limit) {
    return std::nullopt;
  }
  return value;
}

// A terminal (a console of the hypervisor) would echo the answer and change line ends.
class RawTerminal {
 public:
  explicit RawTerminal(int fd) : fd_(fd) {
    if (::tcgetattr(fd_, &saved_) != 0) return;
    termios raw = saved_;
    ::cfmakeraw(&raw);
    changed_ = ::tcsetattr(fd_, TCSANOW, &raw) == 0;
  }
  ~RawTerminal() {
    if (changed_) ::tcsetattr(fd_, TCSADRAIN, &saved_);
  }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

 private:
  const int fd_;
  termios saved_ = {};
  bool changed_ = false;
};

class Exchange {
 public:
  explicit Exchange(std::chrono::milliseconds timeout) : deadline_(Clock::now() + timeout) {}

  Answer Run(const Target& target, const std::string& line) {
    Answer answer;
    if (!Open(target)) {
      answer.text = why_;
      return answer;
    }
    const RawTerminal raw(fd_.get());
    if (!Write(line + "\n") || !ReadLine(&answer.text)) {
      answer.text = why_;
      return answer;
    }
    // The host's JSON is compact, and a quote inside one of its strings is escaped.
    answer.ok = answer.text.find("\"ok\":true") != std::string::npos;
    return answer;
  }

 private:
  bool Failed(std::string why) {
    why_ = std::move(why);
    return false;
  }

  int Left() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline_ - Clock::now());
    return left.count() <= 0 ? 0 : static_cast<int>(std::min<int64_t>(left.count(), 1 << 30));
  }

  // False when the deadline came first.
  bool Await(short events) {
    for (;;) {
      pollfd polled = {fd_.get(), events, 0};
      const int count = ::poll(&polled, 1, Left());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return Failed("no answer from the host in time");
      if (polled.revents != POLLHUP) return true;
      // The other end of a virtio port is not there yet, or a socket is gone; reading tells.
      if (!is_device_ || (events & POLLIN) != 0) return true;
      ::poll(nullptr, 0, static_cast<int>(kRetry.count()));
      if (Left() == 0) return Failed("nobody on the host has the port open");
    }
  }

  bool Open(const Target& target) {
    switch (target.kind) {
      case Target::Kind::kDevice:
        return OpenDevice(target.name);
      case Target::Kind::kVsock: {
        sockaddr_vm address = {};
        address.svm_family = AF_VSOCK;
        address.svm_cid = target.cid;
        address.svm_port = target.port;
        return Connect(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
      }
      case Target::Kind::kUnix: {
        sockaddr_un address = {};
        address.sun_family = AF_UNIX;
        std::memcpy(address.sun_path, target.name.data(), target.name.size());
        return Connect(reinterpret_cast<const sockaddr*>(&address), sizeof(address));
      }
      case Target::Kind::kTcp: {
        sockaddr_in v4 = {};
        v4.sin_family = AF_INET;
        v4.sin_port = htons(static_cast<uint16_t>(target.port));
        if (::inet_pton(AF_INET, target.name.c_str(), &v4.sin_addr) == 1) {
          return Connect(reinterpret_cast<const sockaddr*>(&v4), sizeof(v4));
        }
        sockaddr_in6 v6 = {};
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons(static_cast<uint16_t>(target.port));
        ::inet_pton(AF_INET6, target.name.c_str(), &v6.sin6_addr);
        return Connect(reinterpret_cast<const sockaddr*>(&v6), sizeof(v6));
      }
    }
    return Failed("no such kind of stream");
  }

  bool OpenDevice(const std::string& path) {
    constexpr int kFlags = O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    fd_ = Fd(::open(path.c_str(), kFlags));
    if (fd_.get() < 0 && errno == ENOENT) {
      const std::string port = VirtioPort(path, "/sys/class/virtio-ports");
      if (!port.empty()) fd_ = Fd(::open(("/dev/" + port).c_str(), kFlags));
      if (port.empty()) errno = ENOENT;
    }
    if (fd_.get() < 0) return Failed(Reason(path.c_str(), errno));
    struct stat info = {};
    if (::fstat(fd_.get(), &info) != 0 || !S_ISCHR(info.st_mode)) {
      return Failed(path + ": is not a character device");
    }
    is_device_ = true;
    return true;
  }

  bool Connect(const sockaddr* address, socklen_t size) {
    fd_ = Fd(::socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (fd_.get() < 0) return Failed(Reason("socket", errno));
    if (::connect(fd_.get(), address, size) == 0) return true;
    if (errno != EINPROGRESS && errno != EINTR) return Failed(Reason("connect", errno));
    if (!Await(POLLOUT)) return false;
    int error = 0;
    socklen_t length = sizeof(error);
    ::getsockopt(fd_.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    return error == 0 || Failed(Reason("connect", error));
  }

  bool Write(const std::string& text) {
    size_t sent = 0;
    while (sent < text.size()) {
      if (!Await(POLLOUT)) return false;
      const ssize_t n =
          is_device_ ? ::write(fd_.get(), text.data() + sent, text.size() - sent)
                     : ::send(fd_.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n < 0) return Failed(Reason("send", errno));
      sent += static_cast<size_t>(n);
    }
    return true;
  }

  bool ReadLine(std::string* line) {
    char buffer[4096];
    for (;;) {
      if (!Await(POLLIN)) return false;
      const ssize_t n = ::read(fd_.get(), buffer, sizeof(buffer));
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n < 0) return Failed(Reason("receive", errno));
      if (n == 0) return Failed("the host closed the stream without an answer");
      line->append(buffer, static_cast<size_t>(n));
      if (const size_t end = line->find('\n'); end != std::string::npos) {
        line->resize(end);
        return true;
      }
      if (line->size() > kMaxAnswer) return Failed("the host's answer is too long");
    }
  }

  const Clock::time_point deadline_;
  Fd fd_;
  bool is_device_ = false;
  std::string why_;
};

}  // namespace

std::string VirtioPort(std::string_view path, const std::string& class_directory) {
  constexpr std::string_view kLinks = "/dev/virtio-ports/";
  if (path.substr(0, kLinks.size()) != kLinks) return {};
  const std::string_view wanted = path.substr(kLinks.size());
  std::string found;
  DIR* const directory = ::opendir(class_directory.c_str());
  while (const dirent* entry = directory == nullptr ? nullptr : ::readdir(directory)) {
    std::string name = ReadFile(class_directory + "/" + entry->d_name + "/name", kMaxPortName).text;
    if (!name.empty() && name.back() == '\n') name.pop_back();
    if (name == wanted) found = entry->d_name;
  }
  if (directory != nullptr) ::closedir(directory);
  return found;
}

std::optional<Target> ParseTarget(std::string_view text, std::string* why) {
  const auto wrong = [&](const char* reason) {
    std::string quoted(1, '\'');
    quoted += text;
    *why = quoted + "': " + reason;
    return std::nullopt;
  };
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return wrong("is not KIND:WHERE");
  const std::string_view kind = text.substr(0, colon);
  const std::string_view where = text.substr(colon + 1);
  const size_t last = where.rfind(':');
  Target target;
  target.name = where;
  if (where.find('\0') != std::string_view::npos) return wrong("contains a NUL");
  if (kind == "device" || kind == "unix") {
    if (where.empty()) return wrong("the path is empty");
    if (kind == "unix" && where.size() >= sizeof(sockaddr_un::sun_path)) {
      return wrong("the path is too long for a socket");
    }
    target.kind = kind == "unix" ? Target::Kind::kUnix : Target::Kind::kDevice;
    return target;
  }
  if (kind != "vsock" && kind != "tcp") return wrong("KIND is none of vsock, unix, tcp, device");
  if (last == std::string_view::npos) return wrong("the port is missing");
  const auto port = Number(where.substr(last + 1), kind == "tcp" ? 65535 : UINT32_MAX);
  if (!port || *port == 0) return wrong("the port is not a port number");
  target.port = *port;
  std::string_view host = where.substr(0, last);
  if (kind == "vsock") {
    const auto cid = host == "host" ? VMADDR_CID_HOST : Number(host, UINT32_MAX);
    if (!cid) return wrong("the CID is not a number, or host");
    target.kind = Target::Kind::kVsock;
    target.cid = *cid;
    return target;
  }
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  target.kind = Target::Kind::kTcp;
  target.name = host;
  in6_addr address = {};
  if (::inet_pton(AF_INET, target.name.c_str(), &address) != 1 &&
      ::inet_pton(AF_INET6, target.name.c_str(), &address) != 1) {
    return wrong("the address is not a numeric one");
  }
  return target;
}

Answer Send(const Target& target, const std::string& line, std::chrono::milliseconds timeout) {
  return Exchange(timeout).Run(target, line);
}

}  // namespace virtbay::guest_tool
