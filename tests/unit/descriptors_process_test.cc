// A virtbay process that may open few files: whatever one guest does to have them all, nobody else
// notices: other guests, front-ends that come and go, control connections, devices that are added.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "framework/base/unique_fd.h"
#include "hostif/guest/fuse_session.h"
#include "hostif/guest/vhost_user_transport.h"
#include "tests/support/process_state.h"
#include "tests/support/status_matchers.h"
#include "tests/support/temp_dir.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

constexpr uint64_t kRoot = guest::kFuseRootId;
constexpr uint32_t kLimits[] = {256, 1024, 65536};
// How many files, owners and directories a guest asks for at most.
constexpr int kMost = 70'000;

std::string Numbered(const std::string& name, int i) { return name + std::to_string(i); }

// One connection to the control socket.
class Control {
 public:
  explicit Control(const std::string& path) : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    if (connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      fd_.reset();
    }
    const timeval patience{.tv_sec = 20, .tv_usec = 0};
    if (fd_) setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  explicit operator bool() const { return bool{fd_}; }
  // The answer's line; empty when there is none.
  std::string Ask(std::string text) {
    text += '\n';
    if (send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL) < 0) return {};
    std::string answer;
    char c = 0;
    while (recv(fd_.get(), &c, 1, 0) == 1 && c != '\n') answer += c;
    return answer;
  }

 private:
  UniqueFd fd_;
};

bool Worked(const std::string& answer) { return answer.find("\"result\"") != std::string::npos; }

class Guest {
 public:
  static std::unique_ptr<Guest> Connect(const std::string& socket, uint32_t queues) {
    auto transport = guest::VhostUserTransport::Connect(socket);
    EXPECT_OK(transport);
    if (!transport.ok()) return nullptr;
    guest::FuseSessionOptions options;
    options.request_queues = queues;
    options.init_flags |= FUSE_WRITEBACK_CACHE;
    auto session = guest::FuseSession::Create(*std::move(transport), std::move(options));
    EXPECT_OK(session);
    if (!session.ok()) return nullptr;
    auto made = std::make_unique<Guest>();
    made->session_ = *std::move(session);
    return made;
  }
  guest::FuseClient& fs(uint32_t queue = 0) { return session_->client(queue); }
  uint64_t Node(const std::string& path) {
    uint64_t at = kRoot;
    for (const auto& name : stdfs::path(path)) {
      const auto reply = fs().Lookup(at, name.native());
      EXPECT_EQ(reply.error, 0) << path;
      at = reply.value.nodeid;
    }
    return at;
  }

  // What any guest does. Each in moderation, so nothing may fail.
  void Work(uint32_t queues, int files) {
    for (int d = 0; d < 20; ++d) {
      auto& client = fs(static_cast<uint32_t>(d) % queues);
      const uint64_t node = Node(Numbered("d", d) + "/sub");
      const auto dir = client.OpenDir(node);
      ASSERT_EQ(dir.error, 0) << d;
      EXPECT_GE(client.ReadDirPlus(node, dir.value.fh, 0, 4096).value.size(), 3u);
      EXPECT_EQ(client.ReleaseDir(node, dir.value.fh), 0);
      const auto file = client.Lookup(node, "file");
      EXPECT_EQ(file.error, 0);
      EXPECT_EQ(client.GetAttr(file.value.nodeid).error, 0);
    }
    std::vector<std::pair<uint64_t, uint64_t>> open;
    for (int i = 0; i < files; ++i) {
      const std::string name = Numbered("new", i);
      const auto made = fs().Create(kRoot, name, O_RDWR, 0600);
      ASSERT_EQ(made.error, 0) << name;
      open.emplace_back(made.value.entry.nodeid, made.value.open.fh);
    }
    for (size_t i = 0; i + 1 < open.size(); i += 2) {
      EXPECT_EQ(fs().Release(open[i].first, open[i].second), 0);
      const auto again = fs().Open(open[i].first, O_RDWR);
      EXPECT_EQ(again.error, 0);
      open[i].second = again.value.fh;
    }
    for (int i = 0; i < files; ++i) {
      const auto& [node, fh] = open[static_cast<size_t>(i)];
      EXPECT_EQ(fs().Release(node, fh), 0);
      EXPECT_EQ(fs().Unlink(kRoot, Numbered("new", i)), 0);
      EXPECT_EQ(fs().Forget(node, 1), 0);
    }
  }

 private:
  std::unique_ptr<guest::FuseSession> session_;
};

// How a guest may try to have all descriptors; each returns the first error.
struct Greed {
  const char* name;
  int error;  // in the end; 0: it gets on without
  std::function<int(Guest& guest)> take;
};

std::vector<Greed> Greeds(uint32_t limit) {
  std::vector<Greed> greeds = {
      {"opens", ENFILE,
       [](Guest& guest) {
         const uint64_t node = guest.Node("file");
         int error = 0;
         for (int i = 0; i < kMost && error == 0; ++i) error = guest.fs().Open(node, O_RDWR).error;
         return error;
       }},
      {"creates", ENFILE,
       [](Guest& guest) {
         int error = 0;
         for (int i = 0; i < kMost && error == 0; ++i) {
           error = guest.fs().Create(kRoot, Numbered("made", i), O_RDWR, 0600).error;
         }
         return error;
       }},
      {"lists", ENFILE,
       [](Guest& guest) {
         int error = 0;
         const uint64_t node = guest.Node("d0");
         for (int i = 0; i < kMost && error == 0; ++i) error = guest.fs().OpenDir(node).error;
         return error;
       }},
      {"locks", ENOLCK,
       [](Guest& guest) {
         const uint64_t node = guest.Node("file");
         const auto open = guest.fs().Open(node, O_RDWR);
         int error = open.error;
         for (uint64_t owner = 1; owner < kMost && error == 0; ++owner) {
           const fuse_file_lock lock = {0, 9, F_RDLCK, 1};
           error = guest.fs().SetLk(node, open.value.fh, owner, lock, false);
         }
         return error;
       }},
      {"removes what is open", ENFILE,
       [](Guest& guest) {
         int error = 0;
         for (int i = 0; i < kMost && error == 0; ++i) {
           error = guest.fs().Create(kRoot, "open", O_RDWR, 0600).error;
           if (error == 0) error = guest.fs().Unlink(kRoot, "open");
         }
         return error;
       }},
      {"remembers what is removed", 0,
       [](Guest& guest) {
         int error = 0;
         for (int i = 0; i < 3000 && error == 0; ++i) {
           const auto made = guest.fs().Create(kRoot, "gone", O_RDWR, 0600);
           error = made.error;
           if (error == 0) error = guest.fs().Release(made.value.entry.nodeid, made.value.open.fh);
           if (error == 0) error = guest.fs().Unlink(kRoot, "gone");
         }
         // Whether there are that many depends on what can be forgotten.
         return error == ENFILE ? 0 : error;
       }},
      {"looks up", 0,
       [](Guest& guest) {
         int error = 0;
         for (int i = 0; i < 3000 && error == 0; ++i) {
           error = guest.fs().Mkdir(kRoot, Numbered("dir", i), 0700).error;
           const auto found = guest.fs().Lookup(kRoot, Numbered("dir", i));
           if (error == 0) error = found.error;
           if (error == 0)
             error = guest.fs().Lookup(found.value.nodeid, ".x").error == ENOENT ? 0 : EIO;
         }
         return error;
       }},
  };
  // Where there are many descriptors, having them all takes its time.
  if (limit > 1024) greeds.resize(1);
  return greeds;
}

// `virtbay run` of a file, with a limit that it cannot raise. Owned by the test.
class Process {
 public:
  // Waits until it is ready or has ended.
  Process(const std::string& config, const std::string& log, uint32_t limit) {
    int ready[2];
    if (pipe(ready) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      close(ready[0]);
      const rlimit both{limit, limit};
      setrlimit(RLIMIT_NOFILE, &both);
      const std::string fd = std::to_string(ready[1]);
      dup2(::open(log.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600), STDERR_FILENO);
      execl(VIRTBAY_EXECUTABLE, "virtbay", "run", config.c_str(), "--ready-fd", fd.c_str(),
            nullptr);
      _exit(127);
    }
    close(ready[1]);
    const UniqueFd reader(ready[0]);
    char c = 0;
    ready_ = read(reader.get(), &c, 1) == 1;
  }
  ~Process() {
    if (pid_ > 0) Stop();
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  bool ready() const { return ready_; }
  // Exit status; -1 after a signal.
  int Wait() {
    int status = 0;
    EXPECT_EQ(waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }
  int Stop() {
    kill(pid_, SIGTERM);
    return Wait();
  }
  // Descriptors that it has open.
  size_t open() const {
    return static_cast<size_t>(
        std::distance(stdfs::directory_iterator("/proc/" + std::to_string(pid_) + "/fd"),
                      stdfs::directory_iterator()));
  }

 private:
  pid_t pid_ = -1;
  bool ready_ = false;
};

class DescriptorsOfAProcess : public ::testing::TestWithParam<uint32_t> {
 protected:
  static constexpr uint32_t kQueues = 4;

  void SetUp() override {
    rlimit own = {};
    getrlimit(RLIMIT_NOFILE, &own);
    limit_ = static_cast<uint32_t>(std::min<rlim_t>(GetParam(), own.rlim_max));
    if (limit_ < GetParam() && limit_ <= 1024) GTEST_SKIP() << "needs a higher limit";
    for (const char* share : {"greedy", "other", "late"}) {
      for (int d = 0; d < 20; ++d) {
        stdfs::create_directories(dir_ / share / Numbered("d", d) / "sub");
        dir_.Write(std::string(share) + "/" + Numbered("d", d) + "/sub/file", "text");
      }
      dir_.Write(std::string(share) + "/file", "text");
    }
    dir_.Write("virtbay.toml", "[host]\ncontrol-socket = \"" + (dir_ / "control").native() +
                                   "\"\nrlimit-nofile = 0\nlog-level = \"warn\"\n" +
                                   Device("greedy", "writeback = true\n") +
                                   Device("other", "request-queues = 4\nwriteback = true\n"));
    process_ = std::make_unique<Process>(dir_ / "virtbay.toml", dir_ / "log", limit_);
    ASSERT_TRUE(process_->ready()) << "it does not start";
  }
  void TearDown() override {
    if (process_ == nullptr) return;
    EXPECT_EQ(process_->Stop(), 0);
    process_.reset();
    const std::string log = ReadFile(dir_ / "log");
    EXPECT_EQ(log.find("oo many open files"), std::string::npos) << log;
  }

  std::string Device(const std::string& name, const std::string& options) {
    return "[[device]]\nname = \"" + name + "\"\nplugin = \"virtiofs\"\nsocket = \"" +
           Socket(name) + "\"\n[device.options]\nshared-dir = \"" + (dir_ / name).native() +
           "\"\n" + options;
  }
  std::string Socket(const std::string& name) const { return dir_ / (name + ".sock"); }
  std::string ControlSocket() const { return dir_ / "control"; }
  size_t Open() const { return process_->open(); }

  // Everybody but the greedy guest.
  void OthersGoOn() {
    {
      Control control(ControlSocket());
      ASSERT_TRUE(control);
      EXPECT_TRUE(Worked(control.Ask(R"({"command":"list"})")));
      EXPECT_TRUE(Worked(control.Ask(R"({"command":"stats"})")));
    }
    // More than there is room for at once, as a forgetful client leaves them.
    std::vector<std::unique_ptr<Control>> many;
    for (int i = 0; i < 70; ++i) {
      many.push_back(std::make_unique<Control>(ControlSocket()));
      ASSERT_TRUE(*many.back()) << i;
      EXPECT_TRUE(Worked(many.back()->Ask(R"({"command":"list"})"))) << i << ", open: " << Open();
    }
    many.clear();
    for (int i = 0; i < 2; ++i) {
      const auto other = Guest::Connect(Socket("other"), kQueues);
      ASSERT_NE(other, nullptr) << "open: " << Open();
      other->Work(kQueues, 10);
      if (HasFatalFailure()) return;
    }
    // One that comes, and goes again.
    Control control(ControlSocket());
    const std::string added = control.Ask(
        R"({"command":"add","device":{"name":"late","plugin":"virtiofs","socket":")" +
        Socket("late") + R"(","options":{"shared-dir":")" + (dir_ / "late").native() + R"("}}})");
    ASSERT_TRUE(Worked(added)) << added;
    for (int i = 0; i < 2; ++i) {
      const auto late = Guest::Connect(Socket("late"), 1);
      ASSERT_NE(late, nullptr) << "open: " << Open();
      late->Work(1, 4);
      if (HasFatalFailure()) return;
    }
    EXPECT_TRUE(Worked(control.Ask(R"({"command":"remove","name":"late"})")));
  }

  TempDir dir_;
  std::unique_ptr<Process> process_;
  uint32_t limit_ = 0;
};

TEST_P(DescriptorsOfAProcess, OneGuestTakesThemFromNobody) {
  const auto other = Guest::Connect(Socket("other"), kQueues);
  ASSERT_NE(other, nullptr);
  for (const Greed& greed : Greeds(limit_)) {
    SCOPED_TRACE(greed.name);
    const auto greedy = Guest::Connect(Socket("greedy"), 1);
    ASSERT_NE(greedy, nullptr);
    EXPECT_EQ(greed.take(*greedy), greed.error);
    RecordProperty(greed.name, static_cast<int>(Open()));
    EXPECT_LT(Open(), limit_);
    other->Work(kQueues, 10);
    ASSERT_FALSE(HasFailure()) << "open: " << Open();
    // It goes on as well as it can.
    for (int d = 0; d < 20; ++d) EXPECT_NE(greedy->Node(Numbered("d", d) + "/sub/file"), 0u) << d;
    ASSERT_FALSE(HasFailure()) << "open: " << Open();
  }
}

TEST_P(DescriptorsOfAProcess, FrontEndsAndDevicesComeAndGoBesideIt) {
  for (const Greed& greed : Greeds(limit_)) {
    SCOPED_TRACE(greed.name);
    const auto greedy = Guest::Connect(Socket("greedy"), 1);
    ASSERT_NE(greedy, nullptr);
    EXPECT_EQ(greed.take(*greedy), greed.error);
    OthersGoOn();
    ASSERT_FALSE(HasFailure()) << "open: " << Open();
    // Once more, against what has become free since.
    greed.take(*greedy);
    OthersGoOn();
    ASSERT_FALSE(HasFailure()) << "open: " << Open();
  }
}

INSTANTIATE_TEST_SUITE_P(Limits, DescriptorsOfAProcess, ::testing::ValuesIn(kLimits),
                         [](const auto& test) { return std::to_string(test.param); });

// ---- many devices -------------------------------------------------------------------------------

struct Crowd {
  uint32_t limit;
  int devices;
};

class CrowdOfDevices : public ::testing::TestWithParam<Crowd> {};

// What is accepted is served: a guest never finds out that there are too many of them.
TEST_P(CrowdOfDevices, WhoIsTakenInCanOpenFiles) {
  const auto [limit, count] = GetParam();
  TempDir dir;
  stdfs::create_directories(dir / "share");
  dir.Write("share/file", "text");
  std::string config = "[host]\nlog-level = \"warn\"\nrlimit-nofile = 0\n";
  for (int i = 0; i < count; ++i) {
    config += "[[device]]\nname = \"" + Numbered("d", i) +
              "\"\nplugin = \"virtiofs\"\nsocket = \"" + (dir / Numbered("s", i)).native() +
              "\"\n[device.options]\nshared-dir = \"" + (dir / "share").native() + "\"\n";
  }
  dir.Write("virtbay.toml", config);
  Process process(dir / "virtbay.toml", dir / "log", limit);
  if (!process.ready()) {
    EXPECT_EQ(process.Wait(), 1);
    const std::string log = ReadFile(dir / "log");
    EXPECT_NE(log.find("the limit on open files"), std::string::npos) << log;
    return;
  }
  std::vector<std::unique_ptr<Guest>> guests;
  for (int i = 0; i < count; ++i) {
    guests.push_back(Guest::Connect(dir / Numbered("s", i), 1));
    ASSERT_NE(guests.back(), nullptr) << i << ", open: " << process.open();
  }
  for (int i = 0; i < count; ++i) {
    guest::FuseClient& fs = guests[static_cast<size_t>(i)]->fs();
    const auto list = fs.OpenDir(kRoot);
    ASSERT_EQ(list.error, 0) << i << ", open: " << process.open();
    const auto file = fs.Lookup(kRoot, "file");
    ASSERT_EQ(file.error, 0) << i;
    EXPECT_EQ(fs.Open(file.value.nodeid, O_RDWR).error, 0) << i << ", open: " << process.open();
  }
}

INSTANTIATE_TEST_SUITE_P(Limits, CrowdOfDevices,
                         ::testing::Values(Crowd{40, 1}, Crowd{64, 2}, Crowd{128, 4}, Crowd{128, 6},
                                           Crowd{128, 10}, Crowd{256, 8}, Crowd{256, 12},
                                           Crowd{256, 16}, Crowd{1024, 40}, Crowd{1024, 60},
                                           Crowd{1024, 100}),
                         [](const auto& test) {
                           return std::to_string(test.param.limit) + "_" +
                                  std::to_string(test.param.devices);
                         });

// ---- many shares of one device ------------------------------------------------------------------

class CrowdOfShares : public ::testing::TestWithParam<uint32_t> {
 protected:
  // Some more than fit.
  int Most() const { return static_cast<int>(GetParam()) + 10; }
  void SetUp() override {
    for (int i = 0; i < Most(); ++i) {
      stdfs::create_directories(dir_ / Numbered("d", i));
      dir_.Write(Numbered("d", i) + "/file", "text");
    }
  }
  std::string Config(int shares) const {
    std::string config = "[host]\nlog-level = \"warn\"\nrlimit-nofile = 0\ncontrol-socket = \"" +
                         (dir_ / "control").native() +
                         "\"\n[[device]]\nname = \"all\"\nplugin = \"virtiofs\"\nsocket = \"" +
                         (dir_ / "s").native() + "\"\n[device.options]\naggregate = true\n" +
                         "request-queues = 4\n";
    for (int i = 0; i < shares; ++i) {
      config += "[[device.share]]\nname = \"" + Numbered("n", i) + "\"\npath = \"" +
                (dir_ / Numbered("d", i)).native() + "\"\n";
    }
    return config;
  }
  // How many files a guest can have open at once, with all queues of the device in use, each of
  // another share.
  int FilesAtOnce(int shares) {
    const auto guest = Guest::Connect(dir_ / "s", 4);
    if (guest == nullptr) return -1;
    for (int i = 0; i < shares; ++i) {
      const uint64_t node = guest->Node(Numbered("n", i) + "/file");
      const int error = guest->fs(static_cast<uint32_t>(i) % 4).Open(node, O_RDWR).error;
      if (error == 0) continue;
      EXPECT_EQ(error, ENFILE);
      // What is open is no obstacle to listing and finding.
      const auto list = guest->fs().OpenDir(kRoot);
      EXPECT_EQ(list.error, 0);
      EXPECT_NE(guest->Node(Numbered("n", shares - 1) + "/file"), 0u);
      return i;
    }
    return shares;
  }

  TempDir dir_;
};

// However many are accepted, the guest can open files, and the next one is refused in so many
// words.
TEST_P(CrowdOfShares, WhoIsTakenInCanBeUsed) {
  dir_.Write("virtbay.toml", Config(0));
  Process process(dir_ / "virtbay.toml", dir_ / "log", GetParam());
  ASSERT_TRUE(process.ready()) << ReadFile(dir_ / "log");
  Control control(dir_ / "control");
  int shares = 0;
  std::string answer;
  for (; shares < Most(); ++shares) {
    answer = control.Ask(R"({"command":"share-add","device":"all","share":{"name":")" +
                         Numbered("n", shares) + R"(","path":")" +
                         (dir_ / Numbered("d", shares)).native() + R"("}})");
    if (!Worked(answer)) break;
  }
  EXPECT_NE(answer.find("the limit on open files"), std::string::npos) << answer;
  EXPECT_GT(shares, static_cast<int>(GetParam()) / 8);
  RecordProperty("shares", shares);
  int before = 0;
  for (const int fewer : {0, 1, 8, 40}) {
    for (; shares > 0 && fewer > 0 && before < fewer; ++before) {
      --shares;
      ASSERT_TRUE(Worked(control.Ask(R"({"command":"share-remove","device":"all","name":")" +
                                     Numbered("n", shares) + R"("})")));
    }
    const int files = FilesAtOnce(shares);
    EXPECT_GE(files, std::min(shares, 8)) << shares << " shares, open: " << process.open();
    // About half of what is left, and not the last few alone; some are of what finds them.
    EXPECT_GE(files, std::min(shares, fewer * 3 / 8))
        << shares << " shares, open: " << process.open();
  }
  EXPECT_EQ(process.Stop(), 0);
  EXPECT_EQ(ReadFile(dir_ / "log").find("oo many open files"), std::string::npos);
}

TEST_P(CrowdOfShares, AFileWithTooManySaysSo) {
  dir_.Write("virtbay.toml", Config(Most()));
  Process process(dir_ / "virtbay.toml", dir_ / "log", GetParam());
  ASSERT_FALSE(process.ready());
  EXPECT_EQ(process.Wait(), 1);
  const std::string log = ReadFile(dir_ / "log");
  EXPECT_NE(log.find("the limit on open files leaves none"), std::string::npos) << log;
  EXPECT_NE(log.find(dir_.path().native() + "/d"), std::string::npos) << log;
}

INSTANTIATE_TEST_SUITE_P(Limits, CrowdOfShares, ::testing::Values(128u, 256u, 1024u),
                         [](const auto& test) { return std::to_string(test.param); });

}  // namespace
}  // namespace virtbay::testing
