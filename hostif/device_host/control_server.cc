#include "hostif/device_host/control_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

constexpr int kRetryAcceptMs = 100;

}  // namespace

absl::StatusOr<std::unique_ptr<ControlServer>> ControlServer::Create(const std::string& path,
                                                                     ControlTarget* target) {
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return ErrnoStatus(errno, "eventfd");
  auto listener = vhost_user::ListenAt(path, 0600);
  if (!listener.ok()) return Annotate(listener.status(), "control socket");
  return std::unique_ptr<ControlServer>(
      new ControlServer(target, std::move(listener).value(), std::move(wake)));
}

ControlServer::ControlServer(ControlTarget* target, vhost_user::ListeningSocket listener,
                             UniqueFd wake)
    : target_(target), listener_(std::move(listener)), wake_(std::move(wake)) {
  queries_.thread = std::thread([this] { Work(&queries_); });
  changes_.thread = std::thread([this] { Work(&changes_); });
  loop_ = std::thread([this] { Loop(); });
}

ControlServer::~ControlServer() {
  listener_.file.Remove();
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  Wake();
  loop_.join();
  for (Lane* lane : {&queries_, &changes_}) {
    {
      absl::MutexLock lock(&lane->mutex);
      lane->stop = true;
    }
    lane->thread.join();
  }
}

void ControlServer::Wake() {
  const uint64_t one = 1;
  // EAGAIN means that the loop has a wake-up to see already.
  [[maybe_unused]] const ssize_t n = ::write(wake_.get(), &one, sizeof(one));
}

void ControlServer::Work(Lane* lane) {
  for (;;) {
    Job job;
    {
      absl::MutexLock lock(&lane->mutex);
      lane->mutex.Await(absl::Condition(lane, &Lane::Ready));
      if (lane->stop) return;
      job = std::move(lane->jobs.front());
      lane->jobs.pop_front();
    }
    std::string line = ExecuteControl(target_, job.request);
    {
      absl::MutexLock lock(&mutex_);
      answers_.emplace_back(job.client, std::move(line));
    }
    Wake();
  }
}

void ControlServer::Loop() {
  std::vector<pollfd> polled;
  std::vector<uint64_t> ids;
  bool accepting = true;
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (stop_) return;
    }
    polled.clear();
    ids.clear();
    polled.push_back({wake_.get(), POLLIN, 0});
    // Out of descriptors: the connection stays in the backlog and would be reported for ever.
    polled.push_back({accepting ? listener_.fd.get() : -1, POLLIN, 0});
    for (const auto& [id, client] : clients_) {
      short events = 0;
      if (!client.out.empty()) {
        events = POLLOUT;
      } else if (!client.busy && !client.closing) {
        events = POLLIN;
      }
      polled.push_back({client.fd.get(), events, 0});
      ids.push_back(id);
    }
    if (::poll(polled.data(), polled.size(), accepting ? -1 : kRetryAcceptMs) < 0) {
      if (errno == EINTR) continue;
      // Only a lack of memory is left; the service goes on without its control socket.
      target_->log().Error(ErrnoStatus(errno, "control socket: poll").ToString());
      return;
    }
    accepting = true;
    if ((polled[0].revents & POLLIN) != 0) TakeAnswers();
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto it = clients_.find(ids[i]);
      if (it == clients_.end()) continue;
      const short events = polled[i + 2].revents;
      bool keep = true;
      if ((events & POLLIN) != 0) keep = Receive(it->first, &it->second);
      if (keep && (events & POLLOUT) != 0) keep = Send(it->first, &it->second);
      // Both directions are gone: nobody is left to answer.
      if (keep && (events & (POLLERR | POLLHUP | POLLNVAL)) != 0 && (events & POLLIN) == 0) {
        keep = false;
      }
      if (keep && it->second.closing && !it->second.busy && it->second.out.empty()) keep = false;
      if (!keep) clients_.erase(it);
    }
    if ((polled[1].revents & POLLIN) != 0) accepting = AcceptClients();
  }
}

bool ControlServer::AcceptClients() {
  for (;;) {
    UniqueFd fd(::accept4(listener_.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    if (clients_.size() >= kMaxClients) {
      // A client that sits idle must not keep others out.
      auto oldest = clients_.end();
      for (auto it = clients_.begin(); it != clients_.end(); ++it) {
        if (it->second.busy) continue;
        if (oldest == clients_.end() || it->second.last_used < oldest->second.last_used) {
          oldest = it;
        }
      }
      if (oldest == clients_.end()) continue;
      clients_.erase(oldest);
    }
    Client client;
    client.fd = std::move(fd);
    client.last_used = ++ticks_;
    clients_.emplace(next_client_++, std::move(client));
  }
}

void ControlServer::TakeAnswers() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
  std::vector<std::pair<uint64_t, std::string>> answers;
  {
    absl::MutexLock lock(&mutex_);
    answers.swap(answers_);
  }
  for (const auto& [id, line] : answers) {
    const auto it = clients_.find(id);
    if (it == clients_.end()) continue;
    it->second.busy = false;
    Answer(&it->second, line);
    // Requests that came together were read together; the next one waits in the buffer.
    NextRequest(id, &it->second);
  }
}

void ControlServer::Answer(Client* client, const std::string& line) {
  absl::StrAppend(&client->out, line, "\n");
}

bool ControlServer::Receive(uint64_t id, Client* client) {
  client->last_used = ++ticks_;
  std::array<char, 16384> buffer;
  const ssize_t n = ::recv(client->fd.get(), buffer.data(), buffer.size(), 0);
  if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  if (n == 0) {
    // The client may have closed only its sending side: what it asked is still answered.
    client->closing = true;
    if (!client->in.empty()) client->in.push_back('\n');
  } else {
    client->in.append(buffer.data(), static_cast<size_t>(n));
  }
  NextRequest(id, client);
  return true;
}

void ControlServer::NextRequest(uint64_t id, Client* client) {
  // One request at a time per client, and none while an answer is unsent: a client that asks
  // without reading costs one answer of memory.
  while (!client->busy && client->out.empty()) {
    const size_t end = client->in.find('\n');
    if (end == std::string::npos) {
      if (client->in.size() > kMaxControlLine && !client->closing) {
        Answer(client, ControlErrorLine(absl::InvalidArgumentError(absl::StrCat(
                                            "the line is longer than ", kMaxControlLine, " bytes")),
                                        nullptr));
        client->closing = true;
        client->in.clear();
      }
      return;
    }
    std::string line = client->in.substr(0, end);
    client->in.erase(0, end + 1);
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty()) continue;
    absl::StatusOr<ControlRequest> request = ParseControlLine(line);
    if (!request.ok()) {
      Answer(client, ControlErrorLine(request.status(), nullptr));
      return;
    }
    client->busy = true;
    Lane& lane = request->change ? changes_ : queries_;
    absl::MutexLock lock(&lane.mutex);
    lane.jobs.push_back({id, std::move(request).value()});
  }
}

bool ControlServer::Send(uint64_t id, Client* client) {
  const ssize_t n = ::send(client->fd.get(), client->out.data() + client->out_sent,
                           client->out.size() - client->out_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
  client->last_used = ++ticks_;
  client->out_sent += static_cast<size_t>(n);
  if (client->out_sent == client->out.size()) {
    client->out.clear();
    client->out_sent = 0;
    NextRequest(id, client);
  }
  return true;
}

}  // namespace virtbay::device_host
