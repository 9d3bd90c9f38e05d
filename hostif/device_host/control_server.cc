#include "hostif/device_host/control_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "framework/base/status.h"

namespace virtbay::device_host {
namespace {

constexpr int kRetryAcceptMs = 100;

// Clients take of what devices leave to the process, and must not keep front-ends out.
size_t MostClients() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return 2;
  return std::clamp<size_t>(limit.rlim_cur / 32, 2, ControlServer::kMaxClients);
}

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
    : target_(target),
      listener_(std::move(listener)),
      wake_(std::move(wake)),
      max_clients_(MostClients()) {}

void ControlServer::Start() {
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
  if (!loop_.joinable()) return;  // never started
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
    uint64_t recording = 0;
    std::string line = ExecuteControl(target_, job.request, &recording);
    {
      absl::MutexLock lock(&mutex_);
      answers_.push_back({job.client, std::move(line), recording});
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
    // Without a descriptor or a place the connection stays in the backlog, and would be reported
    // for ever.
    int timeout = -1;
    if (!accepting) {
      timeout = kRetryAcceptMs;
    } else if (full_) {
      timeout = UntilGraceEnds(absl::Now());
    }
    polled.push_back({timeout < 0 ? listener_.fd.get() : -1, POLLIN, 0});
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
    if (::poll(polled.data(), polled.size(), timeout) < 0) {
      if (errno == EINTR) continue;
      // Only a lack of memory is left; the service goes on without its control socket.
      target_->log().Error(ErrnoStatus(errno, "control socket: poll").ToString());
      return;
    }
    const bool look = timeout >= 0;
    accepting = true;
    full_ = false;
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
      if (!keep) Drop(it);
    }
    if (look || (polled[1].revents & POLLIN) != 0) accepting = AcceptClients();
  }
}

bool ControlServer::AcceptClients() {
  for (;;) {
    const absl::Time now = absl::Now();
    if (clients_.size() >= max_clients_ && ChooseVictim(now) == clients_.end()) {
      full_ = true;
      return true;
    }
    UniqueFd fd(::accept4(listener_.fd.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno == EMFILE || errno == ENFILE) {
        // The kernel says so before it looks whether anybody waits.
        pollfd waits = {listener_.fd.get(), POLLIN, 0};
        if (::poll(&waits, 1, 0) <= 0) return true;
        // As many clients as there are descriptors for: the same as too many.
        const auto victim = ChooseVictim(now);
        if (victim != clients_.end() && Evict(victim)) continue;
        return false;
      }
      return errno == EAGAIN || errno == EWOULDBLOCK;
    }
    while (clients_.size() >= max_clients_) {
      const auto victim = ChooseVictim(now);
      if (victim == clients_.end() || Evict(victim)) break;
    }
    Client client;
    client.fd = std::move(fd);
    client.since = now;
    client.last_used = ++ticks_;
    clients_.emplace(next_client_++, std::move(client));
  }
}

ControlServer::Clients::iterator ControlServer::ChooseVictim(absl::Time now) {
  std::set<uint64_t> waiting;
  for (Lane* lane : {&queries_, &changes_}) {
    absl::MutexLock lock(&lane->mutex);
    for (const Job& job : lane->jobs) waiting.insert(job.client);
  }
  // The larger, the sooner it goes.
  const auto rank = [](const Client& client) {
    if (!client.recordings.empty()) return 0;
    return client.busy ? 1 : client.out.empty() ? 3 : 2;
  };
  auto victim = clients_.end();
  for (auto it = clients_.begin(); it != clients_.end(); ++it) {
    const Client& client = it->second;
    if (!client.answered && now - client.since < kGrace) continue;
    if (client.busy && !waiting.contains(it->first)) continue;
    if (victim == clients_.end() || rank(client) > rank(victim->second) ||
        (rank(client) == rank(victim->second) && client.last_used < victim->second.last_used)) {
      victim = it;
    }
  }
  return victim;
}

bool ControlServer::Withdraw(Lane* lane, uint64_t client) {
  absl::MutexLock lock(&lane->mutex);
  const auto job = std::find_if(lane->jobs.begin(), lane->jobs.end(),
                                [&](const Job& waiting) { return waiting.client == client; });
  if (job == lane->jobs.end()) return false;
  lane->jobs.erase(job);
  return true;
}

bool ControlServer::Evict(Clients::iterator victim) {
  if (victim->second.busy) {
    if (!Withdraw(&queries_, victim->first) && !Withdraw(&changes_, victim->first)) return false;
    // It must not take silence for a change that was made. What the socket does not hold is lost.
    const std::string line =
        absl::StrCat(ControlErrorLine(absl::UnavailableError(absl::StrCat(
                                          "not carried out: the control socket has ", max_clients_,
                                          " clients, and others came after this one")),
                                      nullptr),
                     "\n");
    static_cast<void>(
        ::send(victim->second.fd.get(), line.data(), line.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  Erase(victim);
  return true;
}

int ControlServer::UntilGraceEnds(absl::Time now) const {
  absl::Duration wait = kGrace;
  for (const auto& [id, client] : clients_) {
    if (!client.answered) wait = std::min(wait, client.since + kGrace - now);
  }
  // Rounded up, and never 0: that would look again and again until then.
  return static_cast<int>(std::max<int64_t>(1, absl::ToInt64Milliseconds(wait) + 1));
}

void ControlServer::Drop(Clients::iterator client) {
  // An answer that nobody waits for is not made. A change is what was asked for, and is made.
  Withdraw(&queries_, client->first);
  Erase(client);
}

void ControlServer::Erase(Clients::iterator client) {
  for (const uint64_t number : client->second.recordings) EndRecording(number);
  clients_.erase(client);
}

void ControlServer::EndRecording(uint64_t number) {
  absl::MutexLock lock(&changes_.mutex);
  // Of nobody: no client has that number.
  changes_.jobs.push_back({0, EndOfRecording(number)});
}

void ControlServer::TakeAnswers() {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t n = ::read(wake_.get(), &count, sizeof(count));
  std::vector<Outcome> answers;
  {
    absl::MutexLock lock(&mutex_);
    answers.swap(answers_);
  }
  for (const auto& [id, line, recording] : answers) {
    const auto it = clients_.find(id);
    if (it == clients_.end()) {
      if (recording != 0) EndRecording(recording);
      continue;
    }
    if (recording != 0) it->second.recordings.push_back(recording);
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
    absl::StatusOr<ControlRequest> request = ParseControlLine(line);
    if (!request.ok()) {
      Answer(client, ControlErrorLine(request.status(), nullptr));
      return;
    }
    Lane& lane = request->change ? changes_ : queries_;
    absl::MutexLock lock(&lane.mutex);
    // Those who are here have one each; the others were left behind by clients that went.
    if (lane.jobs.size() >= 2 * kMaxClients) {
      Answer(client, ControlErrorLine(absl::UnavailableError("too many requests wait already"),
                                      request->id));
      return;
    }
    client->busy = true;
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
    client->answered = true;
    NextRequest(id, client);
  }
  return true;
}

}  // namespace virtbay::device_host
