// RestartTest: a device host in a process of its own that is killed and started again, and a driver
// that goes on with whichever there is.
// Owned by a test; its thread alone drives, a second one may kill.
#ifndef VIRTBAY_TESTS_UNIT_RESTART_FIXTURE_H_
#define VIRTBAY_TESTS_UNIT_RESTART_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

extern char** environ;

namespace virtbay::testing {

// A process that serves the share; a new one after each that was killed.
class RestartedHost {
 public:
  explicit RestartedHost(std::vector<std::string> more = {},
                         std::vector<std::string> environment = {})
      : more_(std::move(more)), environment_(std::move(environment)) {
    std::filesystem::create_directory(share());
    std::filesystem::create_directory(dir_ / "tmp");
  }
  ~RestartedHost() { Stop(SIGKILL); }

  std::filesystem::path share() const { return dir_ / "share"; }
  std::string socket() const { return (dir_ / socket_).string(); }
  std::filesystem::path state() const { return dir_ / "state"; }
  std::filesystem::path session() const { return state() / "device.virtiofs/virtiofs.session"; }
  std::filesystem::path log() const { return dir_ / "log"; }

  void Start() {
    std::vector<std::string> words = {VIRTBAY_EXECUTABLE,
                                      "serve",
                                      "virtiofs",
                                      "--socket-path=" + socket(),
                                      "--shared-dir=" + share().string(),
                                      "--state-dir=" + state().string(),
                                      "--xattr",
                                      absl::StrCat("--request-queues=", request_queues_),
                                      "--log-level=info"};
    words.insert(words.end(), more_.begin(), more_.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    // Copies of the plugin's file that a killed process leaves.
    std::vector<std::string> extra = {absl::StrCat("TMPDIR=", (dir_ / "tmp").string())};
    extra.insert(extra.end(), environment_.begin(), environment_.end());
    std::vector<char*> env;
    for (std::string& one : extra) env.push_back(one.data());
    for (char** one = environ; *one != nullptr; ++one) {
      if (std::strncmp(*one, "TMPDIR=", 7) != 0) env.push_back(*one);
    }
    env.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log().c_str(),
                                     O_WRONLY | O_CREAT | O_APPEND, 0600);
    pid_t pid = -1;
    const int error = posix_spawn(&pid, argv[0], &actions, nullptr, argv.data(), env.data());
    posix_spawn_file_actions_destroy(&actions);
    ASSERT_EQ(error, 0);
    const std::lock_guard lock(mutex_);
    pid_ = pid;
    signalled_ = false;
  }
  // False: there is no process, or it was sent one before.
  bool Signal(int signal) {
    const std::lock_guard lock(mutex_);
    if (pid_ <= 0 || signalled_) return false;
    signalled_ = true;
    return kill(pid_, signal) == 0;
  }
  // Of one that has ended or is about to.
  int Wait() {
    const std::lock_guard lock(mutex_);
    int status = 0;
    if (pid_ > 0) waitpid(pid_, &status, 0);
    pid_ = -1;
    return status;
  }
  // Another process that asks the one which serves for its devices, and takes its place when that
  // has ended, whose status is returned; it stays the one when the other ends first.
  // `other_ended`: that did, with this status.
  int Replace(std::optional<int>* other_ended = nullptr) {
    const pid_t old = pid();
    Start();
    const pid_t fresh = pid();
    for (;;) {
      int status = 0;
      if (waitpid(old, &status, WNOHANG) == old) return status;
      if (waitpid(fresh, &status, WNOHANG) == fresh) {
        const std::lock_guard lock(mutex_);
        pid_ = old;
        if (other_ended != nullptr) *other_ended = status;
        return 0;
      }
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  // The same, but the other is killed after `delay`, whether it serves by then or not.
  void ReplaceAndKill(absl::Duration delay) {
    const pid_t old = pid();
    Start();
    absl::SleepFor(delay);
    Stop(SIGKILL);
    const std::lock_guard lock(mutex_);
    pid_ = old;
    signalled_ = false;
  }
  // The same, but the one that served is killed.
  void ReplaceAndKillOld(absl::Duration delay) {
    const pid_t old = pid();
    Start();
    absl::SleepFor(delay);
    kill(old, SIGKILL);
    waitpid(old, nullptr, 0);
  }
  // What further processes are given.
  void set_more(std::vector<std::string> more) { more_ = std::move(more); }
  void set_socket(std::string name) { socket_ = std::move(name); }
  void set_request_queues(int queues) { request_queues_ = queues; }
  pid_t pid() {
    const std::lock_guard lock(mutex_);
    return pid_;
  }
  int Stop(int signal) {
    Signal(signal);
    return Wait();
  }
  bool Ended() {
    const std::lock_guard lock(mutex_);
    if (pid_ <= 0) return true;
    siginfo_t info{};
    return waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid != 0;
  }

 private:
  testing::TempDir dir_;
  std::vector<std::string> more_;
  std::string socket_ = "s";
  int request_queues_ = 2;
  const std::vector<std::string> environment_;
  std::mutex mutex_;
  pid_t pid_ = -1;
  bool signalled_ = false;
};

inline std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline std::string Contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// The parameter: packed rings.
class RestartTest : public ::testing::TestWithParam<bool> {
 protected:
  ~RestartTest() override {
    EndKiller();
    if (HasFailure() && host_ != nullptr) {
      std::string log = Contents(host_->log());
      if (log.size() > 1500) log.erase(0, log.size() - 1500);
      ADD_FAILURE() << "the host's last words:\n" << log;
    }
  }

  void Begin(std::vector<std::string> more = {}, std::vector<std::string> environment = {}) {
    host_ = std::make_unique<RestartedHost>(std::move(more), std::move(environment));
    host_->Start();
    guest::FuseSessionOptions options;
    options.packed = GetParam();
    options.request_queues = 2;
    options.queue_size = 256;
    options.queue.max_data = 64 * 1024;
    options.queue.timeout = absl::Seconds(60);
    ASSERT_OK_AND_ASSIGN(auto transport, Connect());
    ASSERT_OK_AND_ASSIGN(session_,
                         guest::FuseSession::Create(std::move(transport), std::move(options)));
    Remember();
    const auto reconnect = [this] { return Reconnect(); };
    for (uint32_t i = 0; i < 2; ++i) session_->queue(i).set_reconnect(reconnect);
    session_->hiprio_queue().set_reconnect(reconnect);
  }

  absl::StatusOr<std::unique_ptr<guest::Transport>> Connect() {
    guest::VhostUserOptions options;
    options.protocol_features = guest::kVhostUserAllProtocolFeatures |
                                (logs_in_flight_ ? guest::kVhostUserProtocolInflight : 0);
    options.in_flight = in_flight_;
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    for (;;) {
      auto transport = guest::VhostUserTransport::Connect(host_->socket(), options);
      if (transport.ok()) return std::unique_ptr<guest::Transport>(*std::move(transport));
      if (absl::Now() > deadline) return transport.status();
      // Not there yet, or killed again meanwhile.
      Revive();
      absl::SleepFor(absl::Milliseconds(1));
    }
  }
  void Remember() {
    in_flight_ =
        static_cast<guest::VhostUserTransport&>(session_->driver().transport()).in_flight();
  }
  // Starts another process if the one that there was has ended.
  void Revive() {
    if (!host_->Ended()) return;
    const int status = host_->Wait();
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0) {
      ADD_FAILURE() << "the host ended by itself: " << WEXITSTATUS(status);
    }
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL && WTERMSIG(status) != SIGTERM) {
      ADD_FAILURE() << "the host crashed: signal " << WTERMSIG(status);
    }
    ++restarts_;
    host_->Start();
  }
  absl::Status Reconnect() {
    for (;;) {
      Revive();
      VIRTBAY_ASSIGN_OR_RETURN(auto transport, Connect());
      const absl::Status status = session_->driver().Reconnect(std::move(transport));
      Remember();
      if (!absl::IsUnavailable(status)) return status;
    }
  }

  // Ends the process that serves at random moments, `times` times: mostly by SIGKILL.
  void StartKiller(int times, unsigned seed) {
    killer_ = std::thread([this, times, seed] {
      std::mt19937 random(seed);
      while (kills_ < times && !stop_) {
        const uint64_t from = done_;
        const uint64_t some = random() % 40;
        while (done_ < from + some && !stop_) std::this_thread::yield();
        const auto until =
            std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 200);
        while (std::chrono::steady_clock::now() < until) std::this_thread::yield();
        const int signal = random() % 16 == 0 ? SIGTERM : SIGKILL;
        // There may be none just now.
        while (!stop_ && !host_->Signal(signal)) std::this_thread::yield();
        if (!stop_) ++kills_;
      }
      finished_ = true;
    });
  }
  void EndKiller() {
    stop_ = true;
    if (killer_.joinable()) killer_.join();
  }

  guest::FuseClient& client() { return session_->client(); }
  std::filesystem::path share() const { return host_->share(); }

  std::unique_ptr<RestartedHost> host_;
  std::unique_ptr<guest::FuseSession> session_;
  bool logs_in_flight_ = true;
  std::shared_ptr<const guest::VhostUserInFlightLog> in_flight_;
  std::atomic<uint64_t> done_{0};  // operations
  std::atomic<int> restarts_{0};
  std::atomic<int> kills_{0};
  std::atomic<bool> stop_{false};
  std::atomic<bool> finished_{false};
  std::thread killer_;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_UNIT_RESTART_FIXTURE_H_
