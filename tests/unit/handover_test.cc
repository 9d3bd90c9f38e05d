// A device host is replaced by another process while a driver works on: the same connection, the
// same rings, and every file, lock and request that the guest has.
// VIRTBAY_TEST_HANDOVERS: how often under load (50; 5 with a sanitizer).
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <map>
#include <random>
#include <set>

#include "framework/base/sanitized.h"
#include "tests/unit/restart_fixture.h"

namespace virtbay {
namespace {

using guest::FuseSlot;
using testing::Bytes;
using testing::Contents;

constexpr uint64_t kRoot = guest::kFuseRootId;

int Handovers() {
  const char* const text = std::getenv("VIRTBAY_TEST_HANDOVERS");
  return text != nullptr ? std::max(1, std::atoi(text)) : kSanitized ? 5 : 50;
}

fuse_file_lock Lock(uint64_t start, uint64_t end, uint32_t type) {
  fuse_file_lock lock{};
  lock.start = start;
  lock.end = end;
  lock.type = type;
  lock.pid = 1;
  return lock;
}

class HandoverTest : public testing::RestartTest {
 protected:
  void KeepsWhatItHas();
  void Replace() {
    std::optional<int> refused;
    const int status = host_->Replace(&refused);
    ASSERT_FALSE(refused.has_value()) << "the new process ended: " << *refused;
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "the old one ended: " << status;
    ++restarts_;
  }
  // No driver of a virtual machine connects again.
  void NeverReconnects() {
    const auto never = [] { return absl::InternalError("the connection has ended"); };
    for (uint32_t i = 0; i < 2; ++i) session_->queue(i).set_reconnect(never);
    session_->hiprio_queue().set_reconnect(never);
  }
  // What was in flight has to go along with the devices, unless there is a log of it.
  void BeginOnce(std::vector<std::string> more = {}, bool logs = false) {
    logs_in_flight_ = logs;
    Begin(std::move(more));
    if (session_ != nullptr) NeverReconnects();
  }
  std::string Read(uint64_t node, uint64_t fh, uint32_t size = 4096) {
    const auto read = client().Read(node, fh, 0, size);
    EXPECT_EQ(read.error, 0);
    return {reinterpret_cast<const char*>(read.value.data()), read.value.size()};
  }
  size_t Descriptors() {
    const std::filesystem::path fds = absl::StrCat("/proc/", host_->pid(), "/fd");
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(fds),
                                             std::filesystem::directory_iterator()));
  }
  size_t Mappings() {
    const std::string maps = Contents(absl::StrCat("/proc/", host_->pid(), "/maps"));
    return static_cast<size_t>(std::count(maps.begin(), maps.end(), '\n'));
  }
};

TEST_P(HandoverTest, TheGuestKeepsWhatItHas) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce());
  ASSERT_NO_FATAL_FAILURE(KeepsWhatItHas());
}
TEST_P(HandoverTest, TheGuestKeepsWhatItHasWithALog) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce({}, /*logs=*/true));
  ASSERT_NO_FATAL_FAILURE(KeepsWhatItHas());
}

void HandoverTest::KeepsWhatItHas() {
  const auto dir = client().Mkdir(kRoot, "d", 0755);
  ASSERT_EQ(dir.error, 0);
  const uint64_t d = dir.value.nodeid;
  const auto made = client().Create(d, "f", O_RDWR, 0640);
  ASSERT_EQ(made.error, 0);
  const uint64_t node = made.value.entry.nodeid;
  const uint64_t fh = made.value.open.fh;
  ASSERT_EQ(client().Write(node, fh, 0, Bytes("before")).value, 6u);
  // One that has no name any more, and one that never had any.
  const auto gone = client().Create(d, "gone", O_RDWR, 0600);
  ASSERT_EQ(gone.error, 0);
  ASSERT_EQ(client().Write(gone.value.entry.nodeid, gone.value.open.fh, 0, Bytes("kept")).value,
            4u);
  ASSERT_EQ(client().Unlink(d, "gone"), 0);
  const auto nameless = client().Tmpfile(d, O_RDWR, 0600);
  ASSERT_EQ(nameless.error, 0);
  // A directory that is half read.
  std::set<std::string> names = {".", "..", "f"};
  for (int i = 0; i < 100; ++i) {
    const std::string name = absl::StrCat("entry-", i);
    ASSERT_EQ(client().Mknod(d, name, S_IFREG | 0600).error, 0);
    names.insert(name);
  }
  const auto listing = client().OpenDir(d);
  ASSERT_EQ(listing.error, 0);
  std::multiset<std::string> seen;
  uint64_t offset = 0;
  const auto read_some = [&](uint32_t size) {
    const auto entries = client().ReadDir(d, listing.value.fh, offset, size);
    EXPECT_EQ(entries.error, 0);
    for (const auto& entry : entries.value) {
      seen.insert(entry.name);
      offset = entry.next_offset;
    }
    return entries.value.size();
  };
  ASSERT_GT(read_some(512), 0u);
  ASSERT_LT(seen.size(), names.size());
  // Locks: flock, and a record lock, and one who waits for it.
  ASSERT_EQ(client().SetLk(node, fh, 1, Lock(0, INT64_MAX, F_WRLCK), false, FUSE_LK_FLOCK), 0);
  ASSERT_EQ(client().SetLk(node, fh, 7, Lock(0, 9, F_WRLCK), false), 0);
  const auto second = client().Open(node, O_RDWR);
  ASSERT_EQ(second.error, 0);
  FuseSlot* const waits = client().StartLkw(node, second.value.fh, 8, Lock(0, 9, F_WRLCK));
  ASSERT_NE(waits, nullptr);

  for (int i = 0; i < 3; ++i) ASSERT_NO_FATAL_FAILURE(Replace());

  EXPECT_EQ(Read(node, fh), "before");
  EXPECT_EQ(Read(gone.value.entry.nodeid, gone.value.open.fh), "kept");
  EXPECT_EQ(
      client().Write(nameless.value.entry.nodeid, nameless.value.open.fh, 0, Bytes("late")).value,
      4u);
  while (read_some(512) > 0) {
  }
  EXPECT_EQ(std::set<std::string>(seen.begin(), seen.end()), names);
  EXPECT_EQ(seen.size(), names.size()) << "an entry came twice";
  // The host's own view of the locks.
  const UniqueFd own(open((share() / "d/f").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(own);
  EXPECT_EQ(flock(own.get(), LOCK_EX | LOCK_NB), -1);
  EXPECT_EQ(errno, EWOULDBLOCK);
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_len = 10;
  EXPECT_EQ(fcntl(own.get(), F_OFD_SETLK, &range), -1);
  EXPECT_EQ(client().SetLk(node, fh, 7, Lock(0, 9, F_UNLCK), false), 0);
  EXPECT_EQ(client().FinishLk(waits), 0);
  EXPECT_EQ(client().SetLk(node, fh, 1, Lock(0, INT64_MAX, F_UNLCK), false, FUSE_LK_FLOCK), 0);
  EXPECT_EQ(flock(own.get(), LOCK_EX | LOCK_NB), 0);
}

// Files by number, each with what it has to contain; some have lost their name.
TEST_P(HandoverTest, UnderLoad) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce());
  const int times = Handovers();
  std::atomic<int> replaced{0};
  std::thread replacer([&] {
    for (int i = 0; i < times && !HasFatalFailure(); ++i) {
      Replace();
      ++replaced;
    }
    finished_ = true;
  });
  struct File {
    uint64_t node = 0;
    uint64_t fh = 0;
    std::string name;
    std::string content;
    bool named = true;
    bool locked = false;
  };
  std::vector<File> files;
  std::mt19937 random(1);
  int number = 0;
  uint64_t operations = 0;
  // Every queue is busy at the same time.
  const auto lookups = [&] {
    std::vector<FuseSlot*> out;
    for (uint32_t q = 0; q < 2; ++q) {
      for (int i = 0; i < 8; ++i) {
        FuseSlot* const slot = session_->queue(q).Acquire();
        ASSERT_NE(slot, nullptr);
        slot->Begin(FUSE_GETATTR, kRoot).Put(fuse_getattr_in{}).Expect(sizeof(fuse_attr_out));
        ASSERT_OK(session_->queue(q).Submit(slot));
        slot->user = q;
        out.push_back(slot);
      }
      session_->queue(q).Flush();
    }
    for (FuseSlot* slot : out) {
      auto& queue = session_->queue(static_cast<uint32_t>(slot->user));
      ASSERT_OK(queue.Await(slot));
      EXPECT_EQ(slot->error(), 0);
      queue.Release(slot);
    }
  };
  const auto step = [&] {
    if (files.size() < 20) {
      File file;
      file.name = absl::StrCat("f", number++);
      const auto made =
          session_->client(random() % 2).Create(kRoot, file.name, O_RDWR | O_EXCL, 0600);
      ASSERT_EQ(made.error, 0) << file.name;
      file.node = made.value.entry.nodeid;
      file.fh = made.value.open.fh;
      files.push_back(std::move(file));
      return;
    }
    File& file = files[random() % files.size()];
    auto& fuse = session_->client(random() % 2);
    switch (random() % 6) {
      case 0:
        ASSERT_EQ(fuse.Unlink(kRoot, file.name), file.named ? 0 : ENOENT) << file.name;
        file.named = false;
        break;
      case 1: {
        const auto lock = Lock(0, 9, file.locked ? F_UNLCK : F_WRLCK);
        ASSERT_EQ(fuse.SetLk(file.node, file.fh, 5, lock, false), 0);
        file.locked = !file.locked;
        break;
      }
      case 2:
        ASSERT_NO_FATAL_FAILURE(lookups());
        break;
      case 3: {
        const auto read = fuse.Read(file.node, file.fh, 0, 60000);
        ASSERT_EQ(read.error, 0);
        ASSERT_EQ(std::string(reinterpret_cast<const char*>(read.value.data()), read.value.size()),
                  file.content);
        break;
      }
      case 4:
        if (file.named) break;
        ASSERT_EQ(fuse.Release(file.node, file.fh), 0);
        ASSERT_EQ(session_->hiprio().Forget(file.node, 1), 0);
        file = files.back();
        files.pop_back();
        break;
      default: {
        if (file.content.size() > 40000) break;
        const std::string more(1 + random() % 5000, static_cast<char>('a' + random() % 26));
        const auto written = fuse.Write(file.node, file.fh, file.content.size(), Bytes(more));
        ASSERT_EQ(written.error, 0);
        ASSERT_EQ(written.value, more.size());
        file.content += more;
      }
    }
  };
  while (!finished_ && !HasFatalFailure()) {
    step();
    ++operations;
  }
  replacer.join();
  ASSERT_FALSE(HasFatalFailure());
  EXPECT_EQ(replaced, times);
  for (const File& file : files) {
    EXPECT_EQ(Read(file.node, file.fh, 60000), file.content);
    EXPECT_EQ(std::filesystem::exists(share() / file.name), file.named) << file.name;
    if (file.named) {
      EXPECT_EQ(Contents(share() / file.name), file.content);
      const UniqueFd own(open((share() / file.name).c_str(), O_RDWR | O_CLOEXEC));
      struct flock range {};
      range.l_type = F_WRLCK;
      range.l_len = 10;
      EXPECT_EQ(fcntl(own.get(), F_OFD_SETLK, &range), file.locked ? -1 : 0) << file.name;
    }
  }
  RecordProperty("operations", std::to_string(operations));
}

// More descriptors than one packet takes, and more state.
TEST_P(HandoverTest, ThousandsOfOpenFiles) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce());
  struct File {
    uint64_t node, fh;
  };
  std::vector<File> files;
  for (int i = 0; i < 2000; ++i) {
    const std::string name = absl::StrCat("f", i);
    const auto made = client().Create(kRoot, name, O_RDWR, 0600);
    ASSERT_EQ(made.error, 0);
    files.push_back({made.value.entry.nodeid, made.value.open.fh});
    ASSERT_EQ(client().Write(files.back().node, files.back().fh, 0, Bytes(name)).error, 0);
    if (i % 2 == 0) {
      ASSERT_EQ(client().Unlink(kRoot, name), 0);
    }
  }
  ASSERT_NO_FATAL_FAILURE(Replace());
  ASSERT_NO_FATAL_FAILURE(Replace());
  for (size_t i = 0; i < files.size(); ++i) {
    ASSERT_EQ(Read(files[i].node, files[i].fh), absl::StrCat("f", i));
    ASSERT_EQ(client().Release(files[i].node, files[i].fh), 0);
  }
}

// The next process may listen at another place; the front-end that is connected stays.
TEST_P(HandoverTest, AnotherSocketAndAnotherOption) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce());
  const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  const std::string before = host_->socket();
  host_->set_socket("t");
  host_->set_more({"--readonly"});
  ASSERT_NO_FATAL_FAILURE(Replace());
  EXPECT_EQ(client().GetAttr(made.value.entry.nodeid).error, 0);
  EXPECT_EQ(client().Mkdir(kRoot, "d", 0755).error, EROFS);
  EXPECT_FALSE(std::filesystem::exists(before));
  EXPECT_TRUE(std::filesystem::exists(host_->socket()));
  host_->set_more({});
  ASSERT_NO_FATAL_FAILURE(Replace());
  EXPECT_EQ(client().Mkdir(kRoot, "d", 0755).error, 0);
  EXPECT_TRUE(std::filesystem::exists(host_->socket()));
  // And whoever ends the last one finds nothing left behind.
  EXPECT_EQ(host_->Stop(SIGTERM), 0);
  EXPECT_FALSE(std::filesystem::exists(host_->socket()));
  EXPECT_FALSE(std::filesystem::exists(host_->state() / "handover"));
}

// A process that was handed the devices is killed: what the directory keeps is up to date.
TEST_P(HandoverTest, ThenKilled) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  for (int i = 0; i < 3; ++i) {
    ASSERT_NO_FATAL_FAILURE(Replace());
    const auto more = client().Create(kRoot, absl::StrCat("after-", i), O_RDWR, 0600);
    ASSERT_EQ(more.error, 0);
    host_->Signal(SIGKILL);
    ASSERT_EQ(client().Write(more.value.entry.nodeid, more.value.open.fh, 0, Bytes("x")).error, 0);
    ASSERT_EQ(client().Write(made.value.entry.nodeid, made.value.open.fh, 0, Bytes("x")).error, 0);
  }
}

// The new process is killed at any moment: the old one serves on, or it is as if it had been killed
// while it served.
TEST_P(HandoverTest, KilledAtAnyMoment) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  std::string content;
  std::mt19937 random(2);
  int went = 0;
  const int times = std::max(10, Handovers());
  for (int i = 0; i < times; ++i) {
    const pid_t before = host_->pid();
    host_->ReplaceAndKill(absl::Microseconds(random() % 40000));
    const std::string more = absl::StrCat("<", i, ">");
    const auto written =
        client().Write(made.value.entry.nodeid, made.value.open.fh, content.size(), Bytes(more));
    ASSERT_EQ(written.error, 0);
    content += more;
    ASSERT_EQ(client().Mkdir(kRoot, absl::StrCat("d", i), 0755).error, 0);
    ASSERT_EQ(Read(made.value.entry.nodeid, made.value.open.fh), content);
    went += host_->pid() != before ? 1 : 0;
  }
  EXPECT_EQ(Contents(share() / "f"), content);
  RecordProperty("taken", went);
}

// The old one is killed at any moment: the new one goes on with what it was handed, or as after a
// kill.
TEST_P(HandoverTest, TheOldOneIsKilledAtAnyMoment) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  std::string content;
  std::mt19937 random(3);
  const int times = std::max(10, Handovers());
  for (int i = 0; i < times; ++i) {
    host_->ReplaceAndKillOld(absl::Microseconds(random() % 40000));
    const std::string more = absl::StrCat("<", i, ">");
    const auto written =
        client().Write(made.value.entry.nodeid, made.value.open.fh, content.size(), Bytes(more));
    ASSERT_EQ(written.error, 0) << i << Contents(host_->log());
    content += more;
    ASSERT_EQ(client().Mkdir(kRoot, absl::StrCat("d", i), 0755).error, 0);
    ASSERT_EQ(Read(made.value.entry.nodeid, made.value.open.fh), content);
    ASSERT_FALSE(host_->Ended());
  }
  EXPECT_EQ(Contents(share() / "f"), content);
}

TEST_P(HandoverTest, AChainOfThemLeavesNothingBehind) {
  ASSERT_NO_FATAL_FAILURE(BeginOnce());
  const auto made = client().Create(kRoot, "f", O_RDWR, 0600);
  ASSERT_EQ(made.error, 0);
  const auto settle = [&] {
    for (int i = 0; i < 3; ++i) {
      ASSERT_NO_FATAL_FAILURE(Replace());
      ASSERT_EQ(client().Write(made.value.entry.nodeid, made.value.open.fh, 0, Bytes("x")).error,
                0);
    }
  };
  ASSERT_NO_FATAL_FAILURE(settle());
  const size_t descriptors = Descriptors();
  const size_t mappings = Mappings();
  for (int i = 0; i < 3; ++i) ASSERT_NO_FATAL_FAILURE(settle());
  EXPECT_LE(Descriptors(), descriptors + 2);
  EXPECT_LE(Mappings(), mappings + 20);
}

INSTANTIATE_TEST_SUITE_P(Rings, HandoverTest, ::testing::Bool(),
                         [](const auto& i) { return i.param ? "Packed" : "Split"; });

}  // namespace
}  // namespace virtbay
