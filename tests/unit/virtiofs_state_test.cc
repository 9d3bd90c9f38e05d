// A virtiofs device that goes on as another one, with the same guest: what it had open and knew.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "hostif/shares/shares.h"
#include "tests/support/process_state.h"
#include "tests/unit/virtiofs_share.h"

namespace virtbay::testing {
namespace {

namespace stdfs = std::filesystem;

fuse_file_lock Lock(uint32_t type, uint64_t start = 0, uint64_t end = INT64_MAX) {
  return {start, end, type, 42};
}

ShareOptions WithQueues() {
  ShareOptions options;
  options.options["request-queues"] = "2";
  options.session.request_queues = 2;
  return options;
}

// How many descriptors of this process are open on files of that directory without a name.
size_t CountNameless(const stdfs::path& directory) {
  size_t count = 0;
  for (const auto& entry : stdfs::directory_iterator("/proc/self/fd")) {
    struct stat st = {};
    std::error_code closed;
    const std::string target = stdfs::read_symlink(entry.path(), closed).native();
    if (target.rfind(directory.native() + "/", 0) == 0 && stat(entry.path().c_str(), &st) == 0 &&
        st.st_nlink == 0) {
      ++count;
    }
  }
  return count;
}

class VirtioFsState : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(share_.ready()); }
  guest::FuseClient& fs() { return share_.fs(); }

  Share share_{WithQueues()};
};

TEST_F(VirtioFsState, WhatTheGuestKnowsKeepsItsNumbers) {
  stdfs::create_directories(share_.dir() / "a/b");
  const std::string longer(200, 'n');
  for (const std::string& name : {std::string("a/file"), "a/b/" + longer}) {
    share_.dir().Write(name, name);
  }
  ASSERT_EQ(symlink("target", (share_.dir() / "link").c_str()), 0);
  const uint64_t a = share_.Node("a"), b = share_.Node("a/b"), file = share_.Node("a/file");
  const uint64_t deep = share_.Node("a/b/" + longer), link = share_.Node("link");
  EXPECT_EQ(fs().Forget(b, 2), 0) << "only what is below refers to it from here on";
  const auto flags = fs().init().flags;
  const uint64_t known = share_.Metric("inodes");
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(share_.Metric("inodes"), known);
  EXPECT_EQ(fs().init().flags, flags);

  EXPECT_EQ(fs().GetAttr(a).error, 0);
  EXPECT_EQ(fs().GetAttr(file).value.attr.size, 6u);
  EXPECT_EQ(fs().GetAttr(deep).value.attr.size, 204u)
      << "found below a directory that is forgotten";
  EXPECT_EQ(fs().GetAttr(b).error, ESTALE);
  EXPECT_EQ(fs().ReadLink(link).value, "target");
  // The same files are the same inodes, and lookups go on being counted.
  EXPECT_EQ(share_.Node("a/file"), file);
  EXPECT_EQ(share_.Node("link"), link);
  EXPECT_EQ(fs().Forget(file, 2), 0);
  EXPECT_EQ(fs().GetAttr(file).error, ESTALE);
  EXPECT_EQ(fs().Forget(link, 1), 0);
  EXPECT_EQ(fs().GetAttr(link).error, 0);
  // Names that the guest changes are followed.
  EXPECT_EQ(fs().Rename(kRoot, "a", kRoot, "moved"), 0);
  EXPECT_EQ(fs().GetAttr(deep).error, 0);
  // Numbers that were in use before are not given to others.
  share_.dir().Write("new", "");
  const uint64_t fresh = share_.Node("new");
  for (const uint64_t used : {a, b, file, deep, link}) EXPECT_NE(fresh, used);
  // A new session forgets all.
  EXPECT_EQ(fs().Init().error, 0);
  EXPECT_EQ(fs().GetAttr(deep).error, ESTALE);
  EXPECT_EQ(share_.Metric("inodes"), 0u);
}

TEST_F(VirtioFsState, OpenFilesGoOn) {
  share_.dir().Write("file", "0123456789");
  share_.dir().Write("gone", "unlinked");
  const uint64_t file = share_.Node("file"), gone = share_.Node("gone");
  const uint64_t both = share_.OpenPath("file", O_RDWR), reads = share_.OpenPath("file", O_RDONLY);
  const uint64_t nameless = share_.OpenPath("gone", O_RDWR);
  ASSERT_EQ(fs().Unlink(kRoot, "gone"), 0);
  const auto temporary = fs().Tmpfile(kRoot, O_RDWR, 0600);
  ASSERT_EQ(temporary.error, 0);
  const uint64_t made = temporary.value.entry.nodeid, made_fh = temporary.value.open.fh;
  EXPECT_EQ(fs().Write(made, made_fh, 0, Bytes("temporary")).error, 0);
  const size_t handles = share_.Metric("open_handles");
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(share_.Metric("open_handles"), handles);

  EXPECT_EQ(fs().Write(file, both, 0, Bytes("abc")).value, 3u);
  EXPECT_EQ(Text(fs().Read(file, reads, 0, 99).value), "abc3456789");
  EXPECT_EQ(fs().Write(file, reads, 0, Bytes("no")).error, EBADF);
  EXPECT_EQ(fs().GetAttrOfHandle(gone, nameless).value.attr.size, 8u);
  EXPECT_EQ(Text(fs().Read(gone, nameless, 0, 99).value), "unlinked");
  EXPECT_EQ(Text(fs().Read(made, made_fh, 0, 99).value), "temporary");
  EXPECT_EQ(fs().GetAttr(made).error, 0);
  // Found by its descriptor, it can be given a name.
  EXPECT_EQ(fs().Link(made, kRoot, "named").error, 0);
  EXPECT_EQ(ReadFile(share_.dir() / "named"), "temporary");
  // Once more: what was taken over can be handed on.
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(Text(fs().Read(gone, nameless, 0, 99).value), "unlinked");
  EXPECT_EQ(fs().Release(gone, nameless), 0);
  EXPECT_EQ(fs().Read(gone, nameless, 0, 9).error, EBADF);
  const uint64_t next = share_.OpenPath("file", O_RDONLY);
  for (const uint64_t used : {both, reads, nameless, made_fh}) EXPECT_NE(next, used);
  EXPECT_EQ(CountNameless(share_.dir().path()), 1u) << "kept for the inode";
  EXPECT_EQ(fs().Forget(gone, 2), 0);
  // Taken up behind the answer to the next one.
  EXPECT_EQ(fs().GetAttr(kRoot).error, 0);
  EXPECT_EQ(CountNameless(share_.dir().path()), 0u)
      << "the last one that has it open was the guest";
}

TEST_F(VirtioFsState, ARemovedFileThatIsNotOpenIsKept) {
  // Two names: the guest may use the inode by the other one, which the device does not know.
  share_.dir().Write("one", "text");
  stdfs::create_hard_link(share_.dir() / "one", share_.dir() / "two");
  const uint64_t node = share_.Node("one");
  ASSERT_EQ(fs().Unlink(kRoot, "one"), 0);
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(fs().GetAttr(node).value.attr.nlink, 1u);
  const auto open = fs().Open(node, O_RDONLY);
  EXPECT_EQ(Text(fs().Read(node, open.value.fh, 0, 9).value), "text");
  EXPECT_EQ(share_.Node("two"), node);
}

TEST_F(VirtioFsState, AHostThatMovesDirectoriesDoesNotLoseThem) {
  stdfs::create_directories(share_.dir() / "a/sub");
  share_.dir().Write("a/sub/file", "text");
  const uint64_t file = share_.Node("a/sub/file");
  stdfs::rename(share_.dir() / "a", share_.dir() / "elsewhere");
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(fs().GetAttr(file).value.attr.size, 4u);
}

// In the middle of a listing, while the guest removes what it has seen.
TEST_F(VirtioFsState, DirectoriesAreReadToTheirEnd) {
  constexpr int kFiles = 3000;
  stdfs::create_directories(share_.dir() / "dir");
  std::multiset<std::string> expected{".", ".."};
  for (int i = 0; i < kFiles; ++i) {
    const std::string name = absl::StrCat("some-name-of-a-file-", i);
    share_.dir().Write("dir/" + name, "");
    expected.insert(name);
  }
  const uint64_t dir = share_.Node("dir");
  const uint64_t fh = fs().OpenDir(dir).value.fh, whole = fs().OpenDir(dir).value.fh;
  const uint64_t untouched = fs().OpenDir(dir).value.fh;
  std::multiset<std::string> seen;
  uint64_t offset = 0;
  int parts = 0;
  for (;; ++parts) {
    const auto entries = fs().ReadDirPlus(dir, fh, offset, 16384);
    ASSERT_EQ(entries.error, 0);
    if (entries.value.empty()) break;
    for (const auto& entry : entries.value) {
      seen.insert(entry.name);
      offset = entry.next_offset;
      if (entry.name[0] != '.') {
        EXPECT_EQ(fs().Unlink(dir, entry.name), 0);
      }
    }
    if (parts % 5 == 1) {
      ASSERT_NO_FATAL_FAILURE(share_.Replace());
    }
  }
  EXPECT_GT(parts, 10);
  EXPECT_EQ(seen, expected);
  EXPECT_TRUE(stdfs::is_empty(share_.dir() / "dir"));
  // Others from the beginning, and again from there.
  for (const uint64_t other : {whole, untouched, fh}) {
    const auto entries = fs().ReadDir(dir, other, 0, 4096);
    EXPECT_EQ(entries.value.size(), 2u);
  }
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(fs().ReadDir(dir, whole, 0, 4096).value.size(), 2u);
  EXPECT_EQ(fs().ReleaseDir(dir, whole), 0);
}

TEST_F(VirtioFsState, LocksAreHeldOn) {
  share_.dir().Write("file", "0123456789");
  const uint64_t node = share_.Node("file");
  const uint64_t fh = share_.OpenPath("file", O_RDWR), other = share_.OpenPath("file", O_RDWR);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK, 0, 9), false), 0);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_RDLCK, 20, 29), false), 0);
  ASSERT_EQ(fs().SetLk(node, other, 2, Lock(F_RDLCK, 25, 40), false), 0);
  const UniqueFd host(::open((share_.dir() / "file").c_str(), O_RDWR | O_CLOEXEC));
  const auto held = [&](off_t start, off_t length) {
    struct flock lock = {};
    lock.l_type = F_WRLCK;
    lock.l_start = start;
    lock.l_len = length;
    return ::fcntl(host.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  };
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  for (const auto& [start, is] :
       {std::pair<off_t, bool>{0, true}, {10, false}, {20, true}, {40, true}, {41, false}}) {
    EXPECT_EQ(held(start, 1), is) << start;
  }
  // The guest's owners are told apart, and each is known by what it holds.
  EXPECT_EQ(fs().SetLk(node, other, 2, Lock(F_WRLCK, 5, 5), false), EAGAIN);
  EXPECT_EQ(fs().SetLk(node, fh, 1, Lock(F_RDLCK, 5, 5), false), 0);
  const auto found = fs().GetLk(node, other, 2, Lock(F_WRLCK, 0, 9));
  EXPECT_EQ(found.value.type, uint32_t{F_WRLCK});
  EXPECT_EQ(found.value.end, 4u);
  EXPECT_EQ(found.value.pid, 42u);
  EXPECT_EQ(fs().SetLk(node, fh, 1, Lock(F_UNLCK, 0, 9), false), 0);
  EXPECT_FALSE(held(0, 10));
  EXPECT_EQ(fs().Flush(node, other, 2), 0);
  EXPECT_FALSE(held(30, 10));
  EXPECT_EQ(fs().Release(node, fh), 0);
  EXPECT_FALSE(held(0, 100));
}

TEST_F(VirtioFsState, FlocksAreHeldOn) {
  share_.dir().Write("file", "");
  const uint64_t node = share_.Node("file");
  const uint64_t fh = share_.OpenPath("file", O_RDWR), other = share_.OpenPath("file", O_RDWR);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  const UniqueFd host(::open((share_.dir() / "file").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_NE(::flock(host.get(), LOCK_SH | LOCK_NB), 0);
  EXPECT_EQ(fs().SetLk(node, other, 2, Lock(F_WRLCK), false, FUSE_LK_FLOCK), EAGAIN);
  EXPECT_EQ(fs().Release(node, fh), 0);
  EXPECT_EQ(fs().SetLk(node, other, 2, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  // A guest that goes without a word loses them.
  share_.Disconnect();
  EXPECT_EQ(::flock(host.get(), LOCK_EX | LOCK_NB), 0);
}

// A lock that the guest waits for: the request comes again, and what happened meanwhile holds.
TEST_F(VirtioFsState, AWaiterCanBeInterruptedBeforeItIsBack) {
  share_.dir().Write("file", "");
  const uint64_t node = share_.Node("file"), fh = share_.OpenPath("file", O_RDWR);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  // So that its number is one that the client below has not given yet.
  for (int i = 0; i < 20; ++i) ASSERT_EQ(fs().GetAttr(kRoot).error, 0);
  guest::FuseSlot* const old = fs().StartLkw(node, fh, 2, Lock(F_WRLCK));
  ASSERT_NE(old, nullptr);
  ASSERT_EQ(fs().GetAttr(kRoot).error, 0);
  ASSERT_GE(share_.Metric("parked_locks"), 1u);
  const uint64_t unique = old->unique();
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  // The ring's chains do not come along here: this client makes the request again, with that
  // number.
  ASSERT_EQ(share_.session().hiprio().Interrupt(unique), 0);
  // Until the next number is that one.
  const auto number = [&] {
    guest::FuseSlot* const slot = fs().StartLkw(node, fh, 1, Lock(F_WRLCK));
    const uint64_t made = slot->unique();
    EXPECT_EQ(fs().FinishLk(slot), 0);
    return made;
  };
  const uint64_t first = number(), second = number();
  ASSERT_LT(second, unique);
  for (uint64_t last = second; last + (second - first) < unique;) last = number();
  guest::FuseSlot* const again = fs().StartLkw(node, fh, 2, Lock(F_WRLCK));
  ASSERT_EQ(again->unique(), unique);
  EXPECT_EQ(fs().FinishLk(again), EINTR);
  // The next one waits, and is found.
  guest::FuseSlot* const waits = fs().StartLkw(node, fh, 2, Lock(F_WRLCK));
  ASSERT_EQ(fs().GetAttr(kRoot).error, 0);
  ASSERT_EQ(share_.Metric("parked_locks"), 1u);
  ASSERT_EQ(share_.session().hiprio().Interrupt(waits->unique()), 0);
  EXPECT_EQ(fs().FinishLk(waits), EINTR);
}

TEST_F(VirtioFsState, AWaiterWaitsAgainAndGetsTheLock) {
  share_.dir().Write("file", "");
  const uint64_t node = share_.Node("file"), fh = share_.OpenPath("file", O_RDWR);
  const uint64_t other = share_.OpenPath("file", O_RDWR);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  ASSERT_NO_FATAL_FAILURE(share_.Replace());
  guest::FuseSlot* const waits = fs().StartLkw(node, other, 2, Lock(F_WRLCK));
  ASSERT_EQ(fs().GetAttr(kRoot).error, 0);
  EXPECT_EQ(share_.Metric("parked_locks"), 1u);
  EXPECT_EQ(share_.fs(1).SetLk(node, fh, 1, Lock(F_UNLCK), false), 0);
  EXPECT_EQ(fs().FinishLk(waits), 0);
}

// The same under the guest's rings, by a reload: it notices nothing.
TEST_F(VirtioFsState, SurvivesAReloadOfItsPlugin) {
  const auto reload = [this] {
    const auto report = share_.host().Reload("share", {});
    EXPECT_OK(report);
    return report.ok() && report->state_restored;
  };
  stdfs::create_directories(share_.dir() / "dir");
  for (int i = 0; i < 500; ++i) share_.dir().Write(absl::StrCat("dir/name-of-a-file-", i), "");
  share_.dir().Write("file", "0123456789");
  const uint64_t node = share_.Node("file"), dir = share_.Node("dir");
  const uint64_t fh = share_.OpenPath("file", O_RDWR), other = share_.OpenPath("file", O_RDWR);
  const uint64_t list = fs().OpenDir(dir).value.fh;
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  guest::FuseSlot* const interrupted = fs().StartLkw(node, other, 2, Lock(F_WRLCK));
  guest::FuseSlot* const waits = fs().StartLkw(node, other, 3, Lock(F_WRLCK));
  ASSERT_NE(interrupted, nullptr);
  ASSERT_NE(waits, nullptr);
  std::multiset<std::string> seen;
  uint64_t offset = 0;
  for (int i = 0; i < 5; ++i) {
    const auto entries = fs().ReadDir(dir, list, offset, 2048);
    ASSERT_EQ(entries.error, 0);
    for (const auto& entry : entries.value) {
      seen.insert(entry.name);
      offset = entry.next_offset;
    }
    ASSERT_TRUE(reload()) << i;
    EXPECT_EQ(Text(fs().Read(node, fh, 0, 99).value), "0123456789");
  }
  for (;;) {
    const auto entries = fs().ReadDir(dir, list, offset, 2048);
    ASSERT_EQ(entries.error, 0);
    if (entries.value.empty()) break;
    for (const auto& entry : entries.value) {
      seen.insert(entry.name);
      offset = entry.next_offset;
    }
  }
  EXPECT_EQ(seen.size(), 502u);
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()).size(), 502u);
  // Both wait on, under the numbers that they had.
  ASSERT_EQ(share_.session().hiprio().Interrupt(interrupted->unique()), 0);
  EXPECT_EQ(fs().FinishLk(interrupted), EINTR);
  EXPECT_EQ(share_.fs(1).SetLk(node, fh, 1, Lock(F_UNLCK), false), 0);
  EXPECT_EQ(fs().FinishLk(waits), 0);
  const UniqueFd host(::open((share_.dir() / "file").c_str(), O_RDWR | O_CLOEXEC));
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_GETLK, &lock), 0);
  EXPECT_NE(lock.l_type, F_UNLCK);
}

// Whenever it comes: it is remembered for a request that was handed back.
TEST_F(VirtioFsState, AnInterruptBeforeAReloadIsNotLost) {
  share_.dir().Write("file", "");
  const uint64_t node = share_.Node("file"), fh = share_.OpenPath("file", O_RDWR);
  ASSERT_EQ(fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  for (int i = 0; i < 20; ++i) {
    guest::FuseSlot* const waits = fs().StartLkw(node, fh, 2, Lock(F_WRLCK));
    ASSERT_EQ(fs().GetAttr(kRoot).error, 0);
    std::thread reload([this] { EXPECT_OK(share_.host().Reload("share", {})); });
    EXPECT_EQ(share_.session().hiprio().Interrupt(waits->unique()), 0);
    EXPECT_EQ(fs().FinishLk(waits), EINTR);
    reload.join();
  }
}

TEST_F(VirtioFsState, NothingIsLeftOfTheOneBefore) {
  stdfs::create_directories(share_.dir() / "dir");
  for (int i = 0; i < 50; ++i) share_.dir().Write(absl::StrCat("dir/", i), "text");
  for (int i = 0; i < 50; ++i) {
    share_.OpenPath(absl::StrCat("dir/", i), O_RDWR);
    if (i % 2 == 0) {
      EXPECT_EQ(fs().Unlink(share_.Node("dir"), absl::StrCat(i)), 0);
    }
  }
  for (int i = 0; i < 3; ++i) ASSERT_NO_FATAL_FAILURE(share_.Replace());
  const size_t fds = CountEntries("/proc/self/fd");
  const uint64_t counted = share_.Metric("descriptors");
  for (int i = 0; i < 10; ++i) ASSERT_NO_FATAL_FAILURE(share_.Replace());
  EXPECT_EQ(CountEntries("/proc/self/fd"), fds);
  EXPECT_EQ(share_.Metric("descriptors"), counted);
  share_.Disconnect();
  EXPECT_EQ(share_.Metric("descriptors"), 0u);
  EXPECT_EQ(CountOpenUnder(share_.dir().path()), 1u) << "its directory";
}

TEST(VirtioFsStateAlone, ADeviceThatHasGoneIsNotGoneForTheOneThatFailed) {
  // Restoring into a device with other options fails, and takes no lock with it.
  Share share;
  ASSERT_TRUE(share.ready());
  share.dir().Write("file", "");
  const uint64_t node = share.Node("file"), fh = share.OpenPath("file", O_RDWR);
  ASSERT_EQ(share.fs().SetLk(node, fh, 1, Lock(F_WRLCK), false), 0);
  ASSERT_EQ(share.fs().SetLk(node, fh, 1, Lock(F_WRLCK), false, FUSE_LK_FLOCK), 0);
  auto state = share.device().Save();
  ASSERT_OK(state);
  DeviceState copy;
  copy.type = state->type;
  copy.version = state->version;
  copy.bytes = state->bytes;
  for (const DeviceState::Fd& fd : state->fds) {
    copy.fds.push_back({fd.role, UniqueFd(::fcntl(fd.fd.get(), F_DUPFD_CLOEXEC, 3))});
  }
  const TempDir elsewhere;
  DeviceSpec spec = share.spec();
  spec.name = "other";
  spec.options["shared-dir"] = elsewhere.path().native();
  const auto refused = share.host().Add(spec, std::move(copy));
  EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("another directory"));
  const UniqueFd host(::open((share.dir() / "file").c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_NE(::flock(host.get(), LOCK_EX | LOCK_NB), 0);
  // One that is restored, and goes: where a reload is undone the one before goes on.
  spec = share.spec();
  spec.name = "rolled-back";
  copy = {};
  copy.type = state->type;
  copy.version = state->version;
  copy.bytes = state->bytes;
  for (const DeviceState::Fd& fd : state->fds) {
    copy.fds.push_back({fd.role, UniqueFd(::fcntl(fd.fd.get(), F_DUPFD_CLOEXEC, 3))});
  }
  auto undone = share.host().Add(spec, std::move(copy));
  ASSERT_OK(undone);
  guest::FuseSessionOptions session_options;
  session_options.negotiated = share.session().init();
  {
    // It has served already.
    auto transport = guest::InProcessTransport::Attach(*undone);
    ASSERT_OK(transport);
    auto session = guest::FuseSession::Create(*std::move(transport), std::move(session_options));
    ASSERT_OK(session);
    EXPECT_EQ((*session)->client().GetAttr(node).error, 0);
  }
  ASSERT_OK(share.host().Remove("rolled-back"));
  EXPECT_NE(::flock(host.get(), LOCK_EX | LOCK_NB), 0);
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  EXPECT_EQ(::fcntl(host.get(), F_OFD_GETLK, &lock), 0);
  EXPECT_NE(lock.l_type, F_UNLCK);
}

TEST(VirtioFsStateAlone, TheDirectoryMayHaveAnotherNameByNow) {
  ShareOptions options;
  Share share(std::move(options));
  ASSERT_TRUE(share.ready());
  stdfs::create_directories(share.dir() / "dir");
  share.dir().Write("dir/file", "text");
  // A share of its own below, whose directory is renamed while it serves.
  DeviceSpec spec = share.spec();
  spec.name = "inner";
  spec.options["shared-dir"] = (share.dir() / "dir").native();
  auto device = share.host().Add(spec);
  ASSERT_OK(device);
  stdfs::rename(share.dir() / "dir", share.dir() / "renamed");
  auto state = device->Save();
  ASSERT_OK(state);
  ASSERT_OK(share.host().Remove("inner"));
  auto next = share.host().Add(spec, *std::move(state));
  ASSERT_OK(next);
  auto transport = guest::InProcessTransport::Attach(*next);
  ASSERT_OK(transport);
  auto session = guest::FuseSession::Create(*std::move(transport), {});
  ASSERT_OK(session);
  EXPECT_EQ((*session)->client().Lookup(kRoot, "file").error, 0);
}

class VirtioFsStateShares : public ::testing::Test {
 protected:
  static ShareOptions Options() {
    ShareOptions options;
    options.aggregate = true;
    options.options["xattr"] = "";
    return options;
  }
  void SetUp() override {
    ASSERT_TRUE(all_.ready());
    for (const char* name : {"a", "b", "c"}) {
      stdfs::create_directories(all_.dir() / name / "sub");
      all_.dir().Write(absl::StrCat(name, "/file"), absl::StrCat("of ", name));
    }
    Add("a", {{"uid", "7"}, {"umask", "022"}, {"translate-gid", "map:5:6:1"}});
    Add("b", {{"readonly", "true"}});
    Add("c", {});
  }
  void Add(const std::string& name, std::map<std::string, std::string> options) {
    EXPECT_OK(shares::Add(all_.device(), {name, (all_.dir() / name).native(), std::move(options)}));
  }
  guest::FuseClient& fs() { return all_.fs(); }

  Share all_{Options()};
};

TEST_F(VirtioFsStateShares, ComeAlongWithTheirOptionsAndNumbers) {
  std::map<std::string, uint64_t> nodes, numbers;
  for (const std::string path : {"a", "a/file", "b", "b/file", "c", "c/file", "c/sub"}) {
    nodes[path] = all_.Node(path);
    numbers[path] = fs().GetAttr(nodes[path]).value.attr.ino;
  }
  const uint64_t open = all_.OpenPath("c/file", O_RDWR),
                 dir = fs().OpenDir(nodes["c/sub"]).value.fh;
  const uint64_t root = fs().OpenDir(kRoot).value.fh;
  const auto first = fs().ReadDir(kRoot, root, 0, 100);
  ASSERT_FALSE(first.value.empty());
  const auto before = shares::List(all_.device());
  ASSERT_OK(before);
  ASSERT_OK(shares::Remove(all_.device(), "c"));
  ASSERT_NO_FATAL_FAILURE(all_.Replace());

  for (const std::string path : {"a", "a/file", "b", "b/file"}) {
    const auto attr = fs().GetAttr(nodes[path]);
    EXPECT_EQ(attr.error, 0) << path;
    EXPECT_EQ(attr.value.attr.ino, numbers[path]) << path;
    EXPECT_EQ(all_.Node(path), nodes[path]) << path;
  }
  EXPECT_EQ(fs().GetAttr(nodes["a/file"]).value.attr.uid, 7u);
  EXPECT_EQ(fs().Create(nodes["b"], "new", O_RDWR, 0600).error, EROFS);
  // Of one that was removed there is what was open.
  EXPECT_EQ(fs().Lookup(kRoot, "c").error, ENOENT);
  EXPECT_EQ(fs().GetAttr(nodes["c"]).error, ESTALE);
  EXPECT_EQ(Text(fs().Read(nodes["c/file"], open, 0, 99).value), "of c");
  EXPECT_EQ(fs().Lookup(nodes["c/sub"], "x").error, ESTALE);
  EXPECT_EQ(fs().ReadDir(nodes["c/sub"], dir, 0, 4096).value.size(), 2u);
  EXPECT_EQ(fs().Release(nodes["c/file"], open), 0);
  EXPECT_EQ(fs().GetAttr(nodes["c/file"]).error, ESTALE);
  // The listing of the root goes on, and the list of shares is the same.
  std::set<std::string> names;
  for (const auto& entry : first.value) names.insert(entry.name);
  const auto rest = fs().ReadDir(kRoot, root, first.value.back().next_offset, 4096);
  for (const auto& entry : rest.value) EXPECT_TRUE(names.insert(entry.name).second) << entry.name;
  EXPECT_TRUE(names.contains("a") && names.contains("b"));
  const auto after = shares::List(all_.device());
  ASSERT_OK(after);
  ASSERT_EQ(after->size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ((*after)[i].name, (*before)[i].name);
    EXPECT_EQ((*after)[i].path, (*before)[i].path);
    EXPECT_EQ((*after)[i].options, (*before)[i].options);
  }
  // New ones get numbers that nobody has.
  Add("c", {});
  const uint64_t again = fs().GetAttr(all_.Node("c/file")).value.attr.ino;
  for (const auto& [path, number] : numbers) {
    if (path[0] != 'c') {
      EXPECT_NE(again, number) << path;
    }
  }
  EXPECT_EQ(all_.Metric("shares"), 3u);
}

TEST_F(VirtioFsStateShares, AreNoneOfADeviceWithOne) {
  auto state = all_.device().Save();
  ASSERT_OK(state);
  DeviceSpec spec = all_.spec();
  spec.name = "single";
  spec.options.erase("aggregate");
  spec.options["shared-dir"] = all_.dir().path().native();
  const auto refused = all_.host().Add(spec, *std::move(state));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.status().message(), ::testing::HasSubstr("option aggregate"));
}

}  // namespace
}  // namespace virtbay::testing
