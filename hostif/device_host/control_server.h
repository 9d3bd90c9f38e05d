// ControlServer: the control socket. One thread moves bytes for all clients without ever blocking
// on one; two more carry requests out, so that a slow add or remove does not hold up the queries.
// Places are for whoever comes: when all are taken, a new client gets that of another (see
// ChooseVictim), at the latest kGrace after it has connected.
// Owned by the executable; Create and the destructor are [control].
#ifndef VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_SERVER_H_
#define VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_SERVER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "framework/base/unique_fd.h"
#include "hostif/device_host/control_protocol.h"
#include "hostif/device_host/control_target.h"
#include "hostif/vhost_user/socket.h"

namespace virtbay::device_host {

class ControlServer {
 public:
  // Fewer where the process may open few files: a thirty-second of them, two at least.
  static constexpr size_t kMaxClients = 64;
  // For so long a client keeps its place until its first answer is sent, whoever else comes.
  static constexpr absl::Duration kGrace = absl::Milliseconds(500);

  // [control] Listens at `path` with mode 0600; who connects is answered from Start on. `target`
  // outlives the server. Errors name the path.
  static absl::StatusOr<std::unique_ptr<ControlServer>> Create(const std::string& path,
                                                               ControlTarget* target);
  // [control] Once: answers from now on, those first who have waited.
  void Start();
  // [control] Finishes the request that is being carried out, drops the clients, removes the path.
  ~ControlServer();
  // [control] Removes the path at once; the destructor does the rest.
  void RemoveSocket() { listener_.file.Remove(); }
  // [any] How many clients there may be at a time.
  size_t max_clients() const { return max_clients_; }
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

 private:
  struct Client {
    UniqueFd fd;
    std::string in;
    std::string out;
    size_t out_sent = 0;
    absl::Time since;                  // when it connected
    uint64_t last_used = 0;            // of ticks_, to find the client that was idle longest
    bool answered = false;             // it has had its first answer
    bool busy = false;                 // a request of it waits or is being carried out
    bool closing = false;              // no more is read; it goes when `out` is sent
    std::vector<uint64_t> recordings;  // that it has begun: they end with it
  };
  using Clients = std::map<uint64_t, Client>;
  struct Outcome {
    uint64_t client = 0;
    std::string line;
    uint64_t recording = 0;  // that has begun; 0: none
  };
  struct Job {  // NOLINT(bugprone-exception-escape): for json, as ControlRequest
    uint64_t client = 0;
    ControlRequest request;
  };
  // A thread with its queue of requests.
  struct Lane {
    absl::Mutex mutex;
    std::deque<Job> jobs ABSL_GUARDED_BY(mutex);
    bool stop ABSL_GUARDED_BY(mutex) = false;
    std::thread thread;

    bool Ready() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) { return stop || !jobs.empty(); }
  };

  ControlServer(ControlTarget* target, vhost_user::ListeningSocket listener, UniqueFd wake);

  void Loop();
  void Work(Lane* lane);
  void Wake();
  // False when the process has no descriptor for the next client.
  bool AcceptClients();
  // Who goes for a new client, or end(): whoever is idle; then who does not take its answers; then
  // whose request waits; then who has something recorded; of those the one that has been so
  // longest. Nobody in its grace, and nobody whose request is being carried out: its outcome would
  // be told to no one.
  Clients::iterator ChooseVictim(absl::Time now);
  // Takes the client's place; false, and nothing done, when its request has begun after all.
  bool Evict(Clients::iterator victim);
  // Forgets a request that has not begun; false when there is none.
  static bool Withdraw(Lane* lane, uint64_t client);
  // Milliseconds until some client's grace is over.
  int UntilGraceEnds(absl::Time now) const;
  void Drop(Clients::iterator client);
  // Forgets it; what it has had recorded ends.
  void Erase(Clients::iterator client);
  void EndRecording(uint64_t number);
  void TakeAnswers();
  // False when the client is to be dropped.
  bool Receive(uint64_t id, Client* client);
  bool Send(uint64_t id, Client* client);
  void NextRequest(uint64_t id, Client* client);
  void Answer(Client* client, const std::string& line);

  ControlTarget* const target_;
  vhost_user::ListeningSocket listener_;
  UniqueFd wake_;
  const size_t max_clients_;

  // The loop's own.
  Clients clients_;
  bool full_ = false;  // a new client waits for a place
  uint64_t next_client_ = 1;
  uint64_t ticks_ = 0;

  Lane queries_;
  Lane changes_;
  absl::Mutex mutex_;
  std::vector<Outcome> answers_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread loop_;
};

}  // namespace virtbay::device_host

#endif  // VIRTBAY_HOSTIF_DEVICE_HOST_CONTROL_SERVER_H_
