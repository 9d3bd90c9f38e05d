// A device host that is killed at each step of each operation, and the one after it at some step of
// doing it again; and what a session keeps and loses with the process.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <optional>

#include "framework/base/sanitized.h"
#include "tests/support/kill_at.h"
#include "tests/unit/restart_fixture.h"

namespace virtbay {
namespace {

using guest::FuseSession;
using testing::Bytes;
using testing::Contents;
using testing::KillAt;

constexpr uint64_t kRoot = guest::kFuseRootId;

class RestartPointsTest : public testing::RestartTest {
 protected:
  ~RestartPointsTest() override {
    if (kill_at_ != nullptr) munmap(kill_at_, sizeof(KillAt));
  }

  void BeginWithPoints() {
    // A sanitizer wants to be loaded first, and has functions of these names itself.
    if (kSanitized) GTEST_SKIP() << "not with a sanitizer";
    const std::string path = (place_ / "kill-at").string();
    const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, sizeof(KillAt)), 0);
    void* const at = mmap(nullptr, sizeof(KillAt), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ASSERT_NE(at, MAP_FAILED);
    kill_at_ = static_cast<KillAt*>(at);
    Begin({}, {"LD_PRELOAD=" VIRTBAY_KILL_AT_LIBRARY, "VIRTBAY_KILL_AT=" + path});
  }

  // `prepare` returns what is to be done to a file of a name of its own, `act` does it, `check`
  // looks at the outcome, a first time and when the process was killed once more.
  void Everywhere(const std::function<void(const std::string&)>& prepare,
                  const std::function<void(const std::string&)>& act,
                  const std::function<void(const std::string&)>& check) {
    int kills = 0;
    for (int point = 1;; ++point) {
      SCOPED_TRACE(absl::StrCat("killed at point ", point));
      const std::string name = absl::StrCat("n", ++names_);
      prepare(name);
      ASSERT_FALSE(HasFailure());
      kill_at_->fired = 0;
      // Not always twice: the second one often comes to its end.
      kill_at_->next = point % 3 == 0 ? 0 : point * 7 % 29 + 1;
      kill_at_->left = point;
      act(name);
      kill_at_->left = 0;
      const int fired = kill_at_->fired;
      ASSERT_FALSE(HasFailure());
      check(name);
      ASSERT_FALSE(HasFailure());
      if (fired == 0) break;
      kills += fired;
      host_->Stop(SIGKILL);
      check(name);
      ASSERT_FALSE(HasFailure());
      ASSERT_LT(point, 500);
    }
    // Before and after the one system call that there is at least.
    EXPECT_GE(kills, 2);
  }

  struct Opened {
    uint64_t node = 0, fh = 0;
  };
  Opened Create(const std::string& name, uint64_t parent = kRoot) {
    const auto made = client().Create(parent, name, O_RDWR | O_EXCL, 0640);
    EXPECT_EQ(made.error, 0) << "create " << name;
    return {made.value.entry.nodeid, made.value.open.fh};
  }
  void Append(const Opened& to, const std::string& text) {
    const auto wrote = client().Write(to.node, to.fh, 0, Bytes(text), 0, O_WRONLY | O_APPEND);
    EXPECT_EQ(wrote.error, 0) << "append";
    EXPECT_EQ(wrote.value, text.size());
  }
  uint64_t Find(const std::string& name, uint64_t parent = kRoot) {
    const auto found = client().Lookup(parent, name);
    EXPECT_EQ(found.error, 0) << "lookup " << name;
    return found.value.nodeid;
  }
  bool IsThere(const std::string& name) {
    struct stat st {};
    return lstat((share() / name).c_str(), &st) == 0;
  }
  std::string Of(const std::string& name) { return Contents(share() / name); }

  testing::TempDir place_;
  KillAt* kill_at_ = nullptr;
  int names_ = 0;
};

#define VIRTBAY_BEGIN_WITH_POINTS()           \
  ASSERT_NO_FATAL_FAILURE(BeginWithPoints()); \
  if (IsSkipped()) return

TEST_P(RestartPointsTest, Create) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened made;
  std::string expected;
  Everywhere([&](const std::string&) { expected.clear(); },
             [&](const std::string& name) { made = Create(name); },
             [&](const std::string& name) {
               Append(made, name);
               expected += name;
               EXPECT_EQ(Of(name), expected);
               EXPECT_EQ(Find(name), made.node);
             });
}

TEST_P(RestartPointsTest, MakeDirectoriesNodesAndLinks) {
  VIRTBAY_BEGIN_WITH_POINTS();
  uint64_t node = 0;
  const auto nothing = [](const std::string&) {};
  const auto check = [&](const std::string& name) {
    EXPECT_EQ(Find(name), node);
    EXPECT_EQ(client().GetAttr(node).error, 0);
    EXPECT_EQ(client().Mkdir(kRoot, name, 0755).error, EEXIST);
  };
  Everywhere(
      nothing,
      [&](const std::string& name) {
        const auto made = client().Mkdir(kRoot, name, 0755);
        EXPECT_EQ(made.error, 0);
        node = made.value.nodeid;
      },
      check);
  Everywhere(
      nothing,
      [&](const std::string& name) {
        const auto made = client().Mknod(kRoot, name, S_IFREG | 0600);
        EXPECT_EQ(made.error, 0);
        node = made.value.nodeid;
      },
      check);
  Everywhere(
      nothing,
      [&](const std::string& name) {
        const auto made = client().Symlink(kRoot, name, "to " + name);
        EXPECT_EQ(made.error, 0);
        node = made.value.nodeid;
      },
      [&](const std::string& name) {
        check(name);
        EXPECT_EQ(client().ReadLink(node).value, "to " + name);
      });
}

TEST_P(RestartPointsTest, Link) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        expected.clear();
      },
      [&](const std::string& name) {
        const auto made = client().Link(file.node, kRoot, name + "-too");
        EXPECT_EQ(made.error, 0);
        EXPECT_EQ(made.value.nodeid, file.node);
        EXPECT_EQ(made.value.attr.nlink, 2u);
      },
      [&](const std::string& name) {
        Append(file, name);
        expected += name;
        EXPECT_EQ(Of(name), expected);
        EXPECT_EQ(Of(name + "-too"), expected);
      });
}

TEST_P(RestartPointsTest, Unlink) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Everywhere(
      [&](const std::string& name) {
        const Opened file = Create(name);
        EXPECT_EQ(client().Release(file.node, file.fh), 0);
      },
      [&](const std::string& name) { EXPECT_EQ(client().Unlink(kRoot, name), 0); },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name));
        EXPECT_EQ(client().Unlink(kRoot, name), ENOENT);
      });
  Everywhere(
      [&](const std::string& name) { EXPECT_EQ(client().Mkdir(kRoot, name, 0755).error, 0); },
      [&](const std::string& name) { EXPECT_EQ(client().Rmdir(kRoot, name), 0); },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name));
        EXPECT_EQ(client().Rmdir(kRoot, name), ENOENT);
      });
}

// The name that the server remembers is the one that goes.
TEST_P(RestartPointsTest, UnlinkOneOfTwoNamesOfAnOpenFile) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file, second;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        second = {file.node, client().Open(file.node, O_RDWR).value.fh};
        EXPECT_EQ(client().Link(file.node, kRoot, name + "-too").error, 0);
        expected.clear();
      },
      [&](const std::string& name) { EXPECT_EQ(client().Unlink(kRoot, name + "-too"), 0); },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name + "-too"));
        Append(file, "1");
        Append(second, "2");
        expected += "12";
        EXPECT_EQ(Of(name), expected);
        EXPECT_EQ(client().GetAttr(file.node).value.attr.nlink, 1u);
      });
}

TEST_P(RestartPointsTest, Rename) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        expected.clear();
      },
      [&](const std::string& name) {
        EXPECT_EQ(client().Rename(kRoot, name, kRoot, name + "-new"), 0);
      },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name));
        Append(file, name);
        expected += name;
        EXPECT_EQ(Of(name + "-new"), expected);
        EXPECT_EQ(client().Rename(kRoot, name, kRoot, name + "-new"), ENOENT);
      });
}

TEST_P(RestartPointsTest, RenameOverAnOpenFileWithAnotherName) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file, target;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        target = Create(name + "-also");
        EXPECT_EQ(client().Link(target.node, kRoot, name + "-new").error, 0);
        expected.clear();
      },
      [&](const std::string& name) {
        EXPECT_EQ(client().Rename(kRoot, name, kRoot, name + "-new"), 0);
      },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name));
        Append(file, "f");
        Append(target, "t");
        expected += "f";
        EXPECT_EQ(Of(name + "-new"), expected);
        EXPECT_EQ(Of(name + "-also"), std::string(expected.size(), 't'));
      });
}

TEST_P(RestartPointsTest, Exchange) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file, other;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        other = Create(name + "-other");
        expected.clear();
      },
      [&](const std::string& name) {
        EXPECT_EQ(client().Rename2(kRoot, name, kRoot, name + "-other", RENAME_EXCHANGE), 0);
      },
      [&](const std::string& name) {
        Append(file, "f");
        Append(other, "o");
        expected += "f";
        EXPECT_EQ(Of(name + "-other"), expected);
        EXPECT_EQ(Of(name), std::string(expected.size(), 'o'));
      });
}

TEST_P(RestartPointsTest, RenameADirectoryWithAnOpenFile) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  uint64_t dir = 0;
  std::string expected;
  Everywhere(
      [&](const std::string& name) {
        dir = client().Mkdir(kRoot, name, 0755).value.nodeid;
        file = Create("file", dir);
        expected.clear();
      },
      [&](const std::string& name) {
        EXPECT_EQ(client().Rename(kRoot, name, kRoot, name + "-new"), 0);
      },
      [&](const std::string& name) {
        EXPECT_FALSE(IsThere(name));
        Append(file, name);
        expected += name;
        EXPECT_EQ(Of(name + "-new/file"), expected);
        EXPECT_EQ(Find("file", dir), file.node);
      });
}

TEST_P(RestartPointsTest, Append) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        Append(file, "before ");
      },
      [&](const std::string&) { Append(file, std::string(20'000, 'x')); },
      [&](const std::string& name) { EXPECT_EQ(Of(name), "before " + std::string(20'000, 'x')); });
}

// More than there is: what the copy itself has added to the file is not copied by the next process.
TEST_P(RestartPointsTest, CopyWithinAFile) {
  VIRTBAY_BEGIN_WITH_POINTS();
  const std::string text = std::string(75, 'a') + std::string(75, 'b');
  for (const uint64_t to : {150u, 250u}) {
    Opened file;
    Everywhere(
        [&](const std::string& name) {
          file = Create(name);
          Append(file, text);
        },
        [&](const std::string&) {
          const auto copied =
              client().CopyFileRange(file.node, file.fh, 0, file.node, file.fh, to, 200);
          EXPECT_EQ(copied.error, 0);
          EXPECT_EQ(copied.value, text.size());
        },
        [&](const std::string& name) {
          EXPECT_EQ(Of(name), text + std::string(to - text.size(), '\0') + text);
        });
  }
}

TEST_P(RestartPointsTest, Attributes) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  const auto prepare = [&](const std::string& name) { file = Create(name); };
  Everywhere(
      prepare,
      [&](const std::string& name) {
        EXPECT_EQ(client().SetXattr(file.node, "user.a", Bytes(name), XATTR_CREATE), 0);
      },
      [&](const std::string& name) {
        EXPECT_EQ(client().GetXattr(file.node, "user.a", 100).value.size(), name.size());
      });
  Everywhere(
      [&](const std::string& name) {
        prepare(name);
        EXPECT_EQ(client().SetXattr(file.node, "user.a", Bytes(name)), 0);
      },
      [&](const std::string&) { EXPECT_EQ(client().RemoveXattr(file.node, "user.a"), 0); },
      [&](const std::string&) {
        EXPECT_EQ(client().GetXattr(file.node, "user.a", 100).error, ENODATA);
      });
  Everywhere(
      [&](const std::string& name) {
        prepare(name);
        Append(file, "four");
      },
      [&](const std::string&) {
        fuse_setattr_in in{};
        in.valid = FATTR_SIZE | FATTR_MODE;
        in.size = 2;
        in.mode = S_IFREG | 0600;
        const auto changed = client().SetAttr(file.node, in);
        EXPECT_EQ(changed.error, 0);
        EXPECT_EQ(changed.value.attr.size, 2u);
      },
      [&](const std::string& name) { EXPECT_EQ(Of(name), "fo"); });
}

TEST_P(RestartPointsTest, OpenAndRelease) {
  VIRTBAY_BEGIN_WITH_POINTS();
  Opened file;
  Everywhere(
      [&](const std::string& name) {
        file = Create(name);
        EXPECT_EQ(client().Release(file.node, file.fh), 0);
      },
      [&](const std::string&) {
        const auto opened = client().Open(file.node, O_RDWR);
        EXPECT_EQ(opened.error, 0);
        file.fh = opened.value.fh;
      },
      [&](const std::string&) { Append(file, "x"); });
  Everywhere([&](const std::string& name) { file = Create(name); },
             [&](const std::string&) { EXPECT_EQ(client().Release(file.node, file.fh), 0); },
             [&](const std::string&) {
               EXPECT_EQ(client().Release(file.node, file.fh), EBADF);
               EXPECT_EQ(client().GetAttr(file.node).error, 0);
             });
}

// ---- what is kept -------------------------------------------------------------------------------

// An orderly end, as for another build of the executable.
TEST_P(RestartPointsTest, TheSessionGoesOnAfterAnOrderlyEnd) {
  Begin();
  const Opened file = Create("file");
  const auto dir = client().Mkdir(kRoot, "dir", 0755);
  ASSERT_TRUE(dir.ok());
  const auto listing = client().OpenDir(kRoot);
  ASSERT_TRUE(listing.ok());
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(host_->Stop(SIGTERM), 0);
    Append(file, absl::StrCat("after ", i, "\n"));
    Create(absl::StrCat("in", i), dir.value.nodeid);
    const auto entries = client().ReadDir(kRoot, listing.value.fh, 0, 4096);
    ASSERT_TRUE(entries.ok());
    EXPECT_EQ(entries.value.size(), 4u);
  }
  EXPECT_EQ(Of("file"), "after 0\nafter 1\nafter 2\n");
}

// A new generation of the device writes on where the one before did, also one that is undone.
TEST_P(RestartPointsTest, AReloadChangesNothingAboutIt) {
  const std::string control = "--control-socket=" + (place_ / "control").string();
  Begin({control});
  const Opened file = Create("file");
  const std::string reload =
      absl::StrCat(VIRTBAY_EXECUTABLE, " reload virtiofs ", control, " > /dev/null 2>&1");
  Append(file, "1");
  ASSERT_EQ(std::system(reload.c_str()), 0);
  Append(file, "2");
  const Opened second = Create("second");
  Append(second, "1");
  ASSERT_EQ(client().Rename(kRoot, "file", kRoot, "renamed"), 0);
  host_->Stop(SIGKILL);
  Append(file, "3");
  Append(second, "2");
  ASSERT_NE(std::system((reload + " --from=" VIRTBAY_EXECUTABLE).c_str()), 0);
  Append(file, "4");
  const Opened third = Create("third");
  host_->Stop(SIGKILL);
  Append(file, "5");
  Append(third, "1");
  EXPECT_EQ(Of("renamed"), "12345");
  EXPECT_EQ(Of("second"), "12");
  EXPECT_EQ(Of("third"), "1");
}

TEST_P(RestartPointsTest, ForgottenInodesStayForgotten) {
  Begin();
  const auto made = client().Mkdir(kRoot, "dir", 0755);
  ASSERT_TRUE(made.ok());
  const auto file = client().Mknod(made.value.nodeid, "file", S_IFREG | 0644);
  ASSERT_TRUE(file.ok());
  ASSERT_EQ(session_->hiprio().Forget(file.value.nodeid, 1), 0);
  ASSERT_TRUE(client().GetAttr(kRoot).ok());
  host_->Stop(SIGKILL);
  EXPECT_TRUE(client().GetAttr(made.value.nodeid).ok());
  EXPECT_EQ(client().GetAttr(file.value.nodeid).error, ESTALE);
  const auto again = client().Lookup(made.value.nodeid, "file");
  ASSERT_TRUE(again.ok());
  EXPECT_NE(again.value.nodeid, file.value.nodeid) << "an inode number of before";
}

// What docs/restart.md says is lost.
TEST_P(RestartPointsTest, AnOpenFileWithoutANameIsLost) {
  Begin();
  const Opened file = Create("file");
  ASSERT_EQ(client().Unlink(kRoot, "file"), 0);
  Append(file, "still there");
  const Opened next = Create("file");
  host_->Stop(SIGKILL);
  EXPECT_EQ(client().Write(file.node, file.fh, 0, Bytes("x")).error, EBADF);
  EXPECT_EQ(client().GetAttr(file.node).error, ESTALE);
  Append(next, "another");
  EXPECT_EQ(Of("file"), "another");
}

TEST_P(RestartPointsTest, AnotherGuestBeginsAnew) {
  Begin();
  const auto made = client().Mkdir(kRoot, "dir", 0755);
  ASSERT_TRUE(made.ok());
  session_.reset();
  in_flight_.reset();
  host_->Stop(SIGKILL);
  host_->Start();
  ASSERT_OK_AND_ASSIGN(auto transport, Connect());
  guest::FuseSessionOptions options;
  options.packed = GetParam();
  ASSERT_OK_AND_ASSIGN(session_, FuseSession::Create(std::move(transport), std::move(options)));
  EXPECT_EQ(client().GetAttr(made.value.nodeid).error, ESTALE);
  EXPECT_TRUE(client().Lookup(kRoot, "dir").ok());
}

TEST_P(RestartPointsTest, AStateThatIsNoneIsReplaced) {
  Begin();
  ASSERT_TRUE(client().Mkdir(kRoot, "dir", 0755).ok());
  host_->Stop(SIGKILL);
  {
    std::ofstream out(host_->session());
    out << "nonsense";
  }
  // The session is lost, and nothing else.
  EXPECT_EQ(client().GetAttr(kRoot).error, ENOTCONN);
  EXPECT_TRUE(client().Init().ok());
  EXPECT_TRUE(client().Lookup(kRoot, "dir").ok());
  EXPECT_NE(Contents(host_->log()).find("is cut, or of another version or shape"),
            std::string::npos);
}

TEST_P(RestartPointsTest, TheStateIsOfOneUserAndOneProcess) {
  Begin();
  struct stat st {};
  for (const auto& dir : {host_->state(), host_->session().parent_path()}) {
    ASSERT_EQ(stat(dir.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0700u) << dir;
  }
  for (const auto& file : {host_->state() / "lock", host_->session()}) {
    ASSERT_EQ(stat(file.c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 0600u) << file;
  }
}

INSTANTIATE_TEST_SUITE_P(Rings, RestartPointsTest, ::testing::Bool(),
                         [](const auto& of) { return of.param ? "Packed" : "Split"; });

}  // namespace
}  // namespace virtbay
