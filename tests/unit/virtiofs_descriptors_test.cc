// Shares of a process that may open few files: the guest's open files find their end, listing and
// looking up does not.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

// Runs `body` in a process that may open so many files more than it has now.
template <typename Body>
void WithFilesLeft(rlim_t files, Body&& body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto open =
        std::distance(stdfs::directory_iterator("/proc/self/fd"), stdfs::directory_iterator());
    struct rlimit limit = {};
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = static_cast<rlim_t>(open) + files;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) _exit(1);
    body();
    _exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "see above";
}

// Shares of one host, each with a tree and a session.
class Shares {
 public:
  Shares() {
    HostOptions options;
    options.log = log_.log();
    auto host = Host::Create(std::move(options));
    EXPECT_OK(host);
    if (host.ok()) host_ = *std::move(host);
  }
  absl::Status Add(std::map<std::string, std::string> options = {}) {
    auto one = std::make_unique<One>();
    stdfs::create_directories(one->dir / "a/b/c/d/e");
    one->dir.Write("file", "text");
    for (int i = 0; i < 30; ++i) {
      std::string directory = "d";
      directory += std::to_string(i);
      stdfs::create_directories(one->dir / directory / "sub");
      one->dir.Write(directory + "/sub/file", directory);
    }
    DeviceSpec spec;
    spec.name = "share";
    spec.name += std::to_string(shares_.size());
    spec.plugin = VIRTBAY_VIRTIOFS_PLUGIN;
    spec.transfer_helper = false;
    spec.options = std::move(options);
    spec.options.emplace("shared-dir", one->dir.path().native());
    auto device = host_->Add(spec);
    if (!device.ok()) return device.status();
    one->device = *device;
    shares_.push_back(std::move(one));
    return absl::OkStatus();
  }
  void Connect(size_t i) {
    auto transport = guest::InProcessTransport::Attach(shares_[i]->device);
    ASSERT_OK(transport);
    auto session = guest::FuseSession::Create(*std::move(transport), {});
    ASSERT_OK(session);
    shares_[i]->session = *std::move(session);
  }
  guest::FuseClient& fs(size_t i) { return shares_[i]->session->client(); }
  bool connected(size_t i) const { return shares_[i]->session != nullptr; }
  uint64_t Node(size_t i, const std::string& path) {
    uint64_t at = kRoot;
    for (const auto& name : stdfs::path(path)) {
      const auto reply = fs(i).Lookup(at, name.native());
      EXPECT_EQ(reply.error, 0) << path;
      at = reply.value.nodeid;
    }
    return at;
  }
  // Opens the file until that is refused; how often.
  size_t OpenAll(size_t i, int* error) {
    const uint64_t node = Node(i, "file");
    size_t count = 0;
    for (*error = 0; count < 1000; ++count) {
      const auto open = fs(i).Open(node, O_RDWR);
      *error = open.error;
      if (*error != 0) break;
      shares_[i]->handles.push_back(open.value.fh);
    }
    return count;
  }
  void CloseAll(size_t i) {
    const uint64_t node = Node(i, "file");
    for (const uint64_t fh : shares_[i]->handles) EXPECT_EQ(fs(i).Release(node, fh), 0);
    shares_[i]->handles.clear();
  }
  // Every directory can be listed and every file looked at, changed and removed.
  void UseTree(size_t i) {
    for (int d = 0; d < 30; ++d) {
      std::string path = "d";
      path += std::to_string(d) + "/sub";
      const uint64_t node = Node(i, path);
      const auto dir = fs(i).OpenDir(node);
      ASSERT_EQ(dir.error, 0) << path;
      EXPECT_GE(fs(i).ReadDirPlus(node, dir.value.fh, 0, 4096).value.size(), 3u) << path;
      EXPECT_EQ(fs(i).ReleaseDir(node, dir.value.fh), 0);
      const auto file = fs(i).Lookup(node, "file");
      EXPECT_EQ(file.error, 0);
      EXPECT_EQ(fs(i).GetAttr(file.value.nodeid).error, 0);
      EXPECT_EQ(fs(i).Rename(node, "file", Node(i, "a/b/c/d/e"), "moved"), 0);
      EXPECT_EQ(fs(i).Rename(Node(i, "a/b/c/d/e"), "moved", node, "file"), 0);
      fuse_setattr_in change = {};
      change.valid = FATTR_SIZE;
      EXPECT_EQ(fs(i).SetAttr(file.value.nodeid, change).error, 0) << "truncate by name";
    }
    EXPECT_EQ(fs(i).Mkdir(Node(i, "a/b"), "made", 0755).error, 0);
    EXPECT_EQ(fs(i).Rmdir(Node(i, "a/b"), "made"), 0);
    EXPECT_EQ(fs(i).SyncFs(), 0);
  }

 private:
  struct One {
    TempDir dir;
    DeviceHandle device;
    std::unique_ptr<guest::FuseSession> session;
    std::vector<uint64_t> handles;
  };
  LogCapture log_;
  std::unique_ptr<Host> host_;
  std::vector<std::unique_ptr<One>> shares_;
};

TEST(VirtioFsDescriptors, ListingGoesOnWhenOpeningDoesNot) {
  WithFilesLeft(80, [] {
    Shares shares;
    ASSERT_OK(shares.Add());
    shares.Connect(0);
    ASSERT_TRUE(shares.connected(0));
    // What is cold is closed for it.
    shares.UseTree(0);
    int error = 0;
    const size_t opened = shares.OpenAll(0, &error);
    EXPECT_EQ(error, ENFILE);
    EXPECT_GE(opened, 10u);
    EXPECT_LT(opened, 80u);
    shares.UseTree(0);
    // Some directories at a time as well.
    std::vector<std::pair<uint64_t, uint64_t>> listed;
    for (int d = 0; d < 3; ++d) {
      std::string path = "d";
      path += std::to_string(d);
      const uint64_t node = shares.Node(0, path);
      const auto dir = shares.fs(0).OpenDir(node);
      EXPECT_EQ(dir.error, 0) << path;
      listed.emplace_back(node, dir.value.fh);
    }
    EXPECT_EQ(shares.fs(0).Create(kRoot, "new", O_RDWR, 0600).error, ENFILE);
    for (const auto& [node, fh] : listed) EXPECT_EQ(shares.fs(0).ReleaseDir(node, fh), 0);
    shares.CloseAll(0);
    const auto made = shares.fs(0).Create(kRoot, "new", O_RDWR, 0600);
    EXPECT_EQ(made.error, 0);
    EXPECT_EQ(shares.fs(0).Release(made.value.entry.nodeid, made.value.open.fh), 0);
    EXPECT_GE(shares.OpenAll(0, &error) + 1, opened) << "nothing was lost on the way";
  });
}

TEST(VirtioFsDescriptors, DirectoriesAndRemovedFilesCannotTakeThemAllEither) {
  WithFilesLeft(80, [] {
    Shares shares;
    ASSERT_OK(shares.Add({{"writeback", ""}}));
    shares.Connect(0);
    ASSERT_TRUE(shares.connected(0));
    // Known to the guest, without a name: the device may not close them for anything else.
    for (int i = 0; i < 200; ++i) {
      const auto made = shares.fs(0).Mkdir(kRoot, "gone", 0755);
      ASSERT_EQ(made.error, 0) << i;
      ASSERT_EQ(shares.fs(0).Rmdir(kRoot, "gone"), 0) << i;
    }
    shares.UseTree(0);
    int error = 0;
    size_t listed = 0;
    for (; error == 0 && listed < 200; ++listed) {
      std::string path = "d";
      path += std::to_string(listed % 30);
      error = shares.fs(0).OpenDir(shares.Node(0, path)).error;
    }
    EXPECT_EQ(error, ENFILE);
    for (int d = 0; d < 30; ++d) {
      std::string path = "d";
      path += std::to_string(d) + "/sub/file";
      EXPECT_NE(shares.Node(0, path), 0u);
    }
  });
}

TEST(VirtioFsDescriptors, OneShareDoesNotStarveAnother) {
  WithFilesLeft(220, [] {
    Shares shares;
    ASSERT_OK(shares.Add());
    ASSERT_OK(shares.Add());
    shares.Connect(0);
    ASSERT_TRUE(shares.connected(0));
    int error = 0;
    const size_t first = shares.OpenAll(0, &error);
    EXPECT_EQ(error, ENFILE);
    EXPECT_GE(first, 20u);
    shares.Connect(1);
    ASSERT_TRUE(shares.connected(1)) << "there is room for another front-end";
    shares.UseTree(1);
    const size_t second = shares.OpenAll(1, &error);
    EXPECT_EQ(error, ENFILE);
    EXPECT_GE(second, 4u);
    shares.UseTree(0);
    shares.UseTree(1);
    // What the first gives back is anybody's.
    shares.CloseAll(0);
    EXPECT_GT(shares.OpenAll(1, &error), 10u);
    shares.UseTree(0);
  });
}

TEST(VirtioFsDescriptors, AShareThatWouldHaveNoneIsRefused) {
  WithFilesLeft(70, [] {
    Shares shares;
    size_t served = 0;
    absl::Status status;
    for (; served < 20; ++served) {
      status = shares.Add();
      if (!status.ok()) break;
    }
    EXPECT_GE(served, 1u);
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted, "limit on open files"));
    shares.Connect(0);
    ASSERT_TRUE(shares.connected(0));
    shares.UseTree(0);
  });
}

}  // namespace
}  // namespace virtbay::testing
