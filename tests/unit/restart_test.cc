// The device host is killed again and again while a driver changes a share through it: another one
// goes on with the session, the requests in flight and the open files. Each reply is the one that a
// model has, and so is in the end what is on the host's disk.
// VIRTBAY_TEST_KILLS: how often each workload is killed (200; 20 with a sanitizer).
// VIRTBAY_TEST_SEED: another course of events.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#include <cerrno>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "framework/base/sanitized.h"
#include "tests/unit/restart_fixture.h"

namespace virtbay {
namespace {

using guest::FuseClient;
using guest::FuseSlot;
using testing::Bytes;
using testing::Contents;

constexpr uint64_t kRoot = guest::kFuseRootId;

int FromEnvironment(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text == nullptr ? otherwise : std::max(1, std::atoi(text));
}
int Kills() { return FromEnvironment("VIRTBAY_TEST_KILLS", kSanitized ? 20 : 200); }
unsigned Seed() { return static_cast<unsigned>(FromEnvironment("VIRTBAY_TEST_SEED", 1)); }

class RestartWorkTest : public testing::RestartTest {};

// ---- what a share is like -----------------------------------------------------------------------

struct File {
  char kind = 'f';  // 'f' a file, 'l' a symbolic link
  uint32_t mode = 0644;
  std::string content;
  std::map<std::string, std::string> attributes;
  uint64_t node = 0;
  uint64_t lookups = 0;  // that the guest has to give back
  uint32_t links = 0;
};
struct Dir {
  uint64_t node = 0;
  uint64_t lookups = 0;
  std::map<std::string, std::shared_ptr<File>> files;
};
// Two names of one file share it.
using Tree = std::map<std::string, Dir>;

std::string Describe(const Tree& tree) {
  std::string text;
  std::map<const File*, size_t> numbers;
  for (const auto& [name, dir] : tree) {
    absl::StrAppend(&text, name, "/\n");
    for (const auto& [file_name, file] : dir.files) {
      const size_t number = numbers.emplace(file.get(), numbers.size()).first->second;
      absl::StrAppend(&text, "  ", file_name, " ", std::string(1, file->kind), number, " ",
                      file->links, " links, mode ", absl::Hex(file->mode), ", ",
                      file->content.size(), ":", file->content);
      for (const auto& [key, value] : file->attributes) {
        absl::StrAppend(&text, " ", key, "=", value);
      }
      absl::StrAppend(&text, "\n");
    }
  }
  return text;
}

std::map<std::string, std::string> Attributes(const std::filesystem::path& path) {
  std::map<std::string, std::string> attributes;
  std::string names(4096, '\0');
  const ssize_t n = listxattr(path.c_str(), names.data(), names.size());
  for (ssize_t at = 0; at < n;) {
    const std::string name = names.c_str() + at;
    at += static_cast<ssize_t>(name.size()) + 1;
    std::string value(256, '\0');
    const ssize_t size = getxattr(path.c_str(), name.c_str(), value.data(), value.size());
    value.resize(size < 0 ? 0 : static_cast<size_t>(size));
    if (name.starts_with("user.")) attributes[name] = value;
  }
  return attributes;
}

Tree ReadTree(const std::filesystem::path& root) {
  Tree tree;
  std::map<ino_t, std::shared_ptr<File>> known;
  for (const auto& dir : std::filesystem::directory_iterator(root)) {
    auto& files = tree[dir.path().filename().string()].files;
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      struct stat st {};
      lstat(entry.path().c_str(), &st);
      auto& file = known[st.st_ino];
      if (file == nullptr) {
        file = std::make_shared<File>();
        file->links = static_cast<uint32_t>(st.st_nlink);
        if (S_ISLNK(st.st_mode)) {
          file->kind = 'l';
          file->mode = 0777;
          file->content = std::filesystem::read_symlink(entry.path()).string();
        } else {
          file->mode = st.st_mode & 07777;
          file->content = Contents(entry.path());
          file->attributes = Attributes(entry.path());
        }
      }
      files[entry.path().filename().string()] = file;
    }
  }
  return tree;
}

// One operation after the other, each with the one outcome that the model has for it.
class Work {
 public:
  Work(guest::FuseSession* session, unsigned seed) : session_(*session), random_(seed) {}

  const Tree& model() const { return tree_; }
  uint64_t appended() const { return appended_; }

  void Step() {
    const std::string dir = absl::StrCat("d", Below(4));
    const std::string name = absl::StrCat("f", Below(8));
    if (!tree_.contains(dir)) return MakeDir(dir);
    switch (Below(22)) {
      case 0:
        return MakeDir(dir);
      case 1:
        return RemoveDir(dir);
      case 2:
        return RenameDir(dir, absl::StrCat("d", Below(4)));
      case 3:
      case 4:
        return Create(dir, name);
      case 5:
        return MakeNode(dir, name);
      case 6:
        return Symlink(dir, name);
      case 7:
      case 8:
        return Link(dir, name, absl::StrCat("f", Below(8)));
      case 9:
      case 10:
        return Unlink(dir, name);
      case 11:
      case 12:
      case 13:
        return Rename(dir, name, absl::StrCat("d", Below(4)), absl::StrCat("f", Below(8)));
      case 14:
        return Open(dir, name);
      case 15:
        return WriteAt();
      case 16:
        return Change(dir, name);
      case 17:
        return SetAttribute(dir, name);
      case 18:
        return RemoveAttribute(dir, name);
      case 19:
        return Look(dir, name);
      default:
        return Append();
    }
  }

 private:
  struct Handle {
    std::shared_ptr<File> file;
    uint64_t fh = 0;
  };

  FuseClient& client() { return session_.client(Below(2)); }
  uint32_t Below(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  std::string Text(uint32_t most) {
    return absl::StrCat("<", number_++, std::string(Below(most), 'x'), ">");
  }
  // nullptr: none.
  std::shared_ptr<File> At(const std::string& dir, const std::string& name) {
    const auto& files = tree_[dir].files;
    const auto found = files.find(name);
    return found == files.end() ? nullptr : found->second;
  }
  std::shared_ptr<File> RegularAt(const std::string& dir, const std::string& name) {
    auto file = At(dir, name);
    return file != nullptr && file->kind == 'f' ? file : nullptr;
  }

  void MakeDir(const std::string& dir) {
    const bool there = tree_.contains(dir);
    const auto made = client().Mkdir(kRoot, dir, 0755);
    ASSERT_EQ(made.error, there ? EEXIST : 0) << "mkdir " << dir;
    if (!there) tree_[dir] = Dir{made.value.nodeid, 1, {}};
  }
  void Forget(uint64_t node, uint64_t lookups) {
    ASSERT_EQ(session_.hiprio().Forget(node, lookups), 0);
  }
  void RemoveDir(const std::string& dir) {
    const bool empty = tree_[dir].files.empty();
    ASSERT_EQ(client().Rmdir(kRoot, dir), empty ? 0 : ENOTEMPTY) << "rmdir " << dir;
    if (!empty) return;
    Forget(tree_[dir].node, tree_[dir].lookups);
    tree_.erase(dir);
  }
  void RenameDir(const std::string& from, const std::string& to) {
    const bool there = tree_.contains(to);
    const bool refused = there && from != to && !tree_[to].files.empty();
    ASSERT_EQ(client().Rename(kRoot, from, kRoot, to), refused ? ENOTEMPTY : 0)
        << "rename " << from << " to " << to;
    if (refused || from == to) return;
    if (there) Forget(tree_[to].node, tree_[to].lookups);
    tree_[to] = std::move(tree_[from]);
    tree_.erase(from);
  }

  void AddFile(const std::string& dir, const std::string& name, File file) {
    tree_[dir].files[name] = std::make_shared<File>(std::move(file));
  }
  void Create(const std::string& dir, const std::string& name) {
    const bool there = At(dir, name) != nullptr;
    const auto made = client().Create(tree_[dir].node, name, O_RDWR | O_EXCL, 0640);
    ASSERT_EQ(made.error, there ? EEXIST : 0) << "create " << dir << "/" << name;
    if (there) return;
    AddFile(dir, name, {'f', 0640, "", {}, made.value.entry.nodeid, 1, 1});
    Keep(At(dir, name), made.value.open.fh);
  }
  void MakeNode(const std::string& dir, const std::string& name) {
    const bool there = At(dir, name) != nullptr;
    const auto made = client().Mknod(tree_[dir].node, name, S_IFREG | 0600);
    ASSERT_EQ(made.error, there ? EEXIST : 0) << "mknod " << dir << "/" << name;
    if (!there) AddFile(dir, name, {'f', 0600, "", {}, made.value.nodeid, 1, 1});
  }
  void Symlink(const std::string& dir, const std::string& name) {
    const bool there = At(dir, name) != nullptr;
    const std::string target = Text(20);
    const auto made = client().Symlink(tree_[dir].node, name, target);
    ASSERT_EQ(made.error, there ? EEXIST : 0) << "symlink " << dir << "/" << name;
    if (!there) AddFile(dir, name, {'l', 0777, target, {}, made.value.nodeid, 1, 1});
  }
  void Link(const std::string& dir, const std::string& name, const std::string& to) {
    const auto file = At(dir, name);
    if (file == nullptr) return;
    const bool there = At(dir, to) != nullptr;
    const auto made = client().Link(file->node, tree_[dir].node, to);
    ASSERT_EQ(made.error, there ? EEXIST : 0) << "link " << dir << "/" << name << " as " << to;
    if (there) return;
    ASSERT_EQ(made.value.nodeid, file->node);
    ++file->lookups;
    ++file->links;
    ASSERT_EQ(made.value.attr.nlink, file->links);
    tree_[dir].files[to] = file;
  }

  // Before a name goes. A file without any name does not outlive the process, see docs/restart.md,
  // so that none is left open.
  void BeforeLoss(const std::shared_ptr<File>& file) {
    if (file->links > 1) return;
    for (const Handle& handle : handles_) {
      if (handle.file != file) continue;
      ASSERT_EQ(client().Release(file->node, handle.fh), 0);
    }
    std::erase_if(handles_, [&](const Handle& handle) { return handle.file == file; });
  }
  void Lost(const std::shared_ptr<File>& file) {
    if (--file->links == 0) Forget(file->node, file->lookups);
  }
  void Unlink(const std::string& dir, const std::string& name) {
    const auto file = At(dir, name);
    if (file != nullptr) BeforeLoss(file);
    ASSERT_EQ(client().Unlink(tree_[dir].node, name), file != nullptr ? 0 : ENOENT)
        << "unlink " << dir << "/" << name;
    if (file == nullptr) return;
    tree_[dir].files.erase(name);
    Lost(file);
  }
  void Rename(const std::string& dir, const std::string& name, const std::string& to_dir,
              const std::string& to) {
    if (!tree_.contains(to_dir)) return;
    const auto file = At(dir, name);
    const auto other = At(to_dir, to);
    const uint32_t kind = Below(3);
    const uint64_t from_node = tree_[dir].node;
    const uint64_t to_node = tree_[to_dir].node;
    const std::string what = absl::StrCat("rename ", dir, "/", name, " to ", to_dir, "/", to);
    if (kind == 0) {
      ASSERT_EQ(client().Rename2(from_node, name, to_node, to, RENAME_EXCHANGE),
                file != nullptr && other != nullptr ? 0 : ENOENT)
          << what << ", exchange";
      if (file != nullptr && other != nullptr) {
        std::swap(tree_[dir].files[name], tree_[to_dir].files[to]);
      }
      return;
    }
    if (kind == 1) {
      const int error = client().Rename2(from_node, name, to_node, to, RENAME_NOREPLACE);
      // The target is looked at first.
      ASSERT_EQ(error, file == nullptr    ? ENOENT
                       : other != nullptr ? EEXIST
                                          : 0)
          << what << ", no replace";
      if (error != 0) return;
    } else {
      if (file != nullptr && other != nullptr && other != file) BeforeLoss(other);
      ASSERT_EQ(client().Rename(from_node, name, to_node, to), file != nullptr ? 0 : ENOENT)
          << what;
      // Two names of one file: rename(2) does nothing.
      if (file == nullptr || other == file) return;
    }
    tree_[dir].files.erase(name);
    tree_[to_dir].files[to] = file;
    if (other != nullptr) Lost(other);
  }

  void Keep(const std::shared_ptr<File>& file, uint64_t fh) {
    handles_.push_back({file, fh});
    if (handles_.size() <= 12) return;
    ASSERT_EQ(client().Release(handles_.front().file->node, handles_.front().fh), 0);
    handles_.erase(handles_.begin());
  }
  void Open(const std::string& dir, const std::string& name) {
    const auto file = RegularAt(dir, name);
    if (file == nullptr) return;
    const auto opened = client().Open(file->node, O_RDWR);
    ASSERT_EQ(opened.error, 0) << "open " << dir << "/" << name;
    Keep(file, opened.value.fh);
  }
  void Append() {
    if (handles_.empty()) return;
    const Handle to = handles_[Below(static_cast<uint32_t>(handles_.size()))];
    const std::string text = Text(200);
    const auto wrote = client().Write(to.file->node, to.fh, 0, Bytes(text), 0, O_WRONLY | O_APPEND);
    ASSERT_EQ(wrote.error, 0) << "append";
    ASSERT_EQ(wrote.value, text.size());
    to.file->content += text;
    ++appended_;
  }
  void WriteAt() {
    if (handles_.empty()) return;
    const Handle to = handles_[Below(static_cast<uint32_t>(handles_.size()))];
    const std::string text = Text(50);
    const uint32_t at = Below(100);
    const auto wrote = client().Write(to.file->node, to.fh, at, Bytes(text));
    ASSERT_EQ(wrote.error, 0) << "write";
    ASSERT_EQ(wrote.value, text.size());
    std::string& content = to.file->content;
    content.resize(std::max<size_t>(content.size(), at + text.size()), '\0');
    content.replace(at, text.size(), text);
  }
  // The size or the mode.
  void Change(const std::string& dir, const std::string& name) {
    const auto file = RegularAt(dir, name);
    if (file == nullptr) return;
    fuse_setattr_in in{};
    if (Below(2) == 0) {
      in.valid = FATTR_SIZE;
      in.size = Below(300);
      file->content.resize(in.size, '\0');
    } else {
      in.valid = FATTR_MODE;
      in.mode = S_IFREG | 0600 | Below(64);
      file->mode = in.mode & 07777;
    }
    const auto changed = client().SetAttr(file->node, in);
    ASSERT_EQ(changed.error, 0) << "setattr";
    ASSERT_EQ(changed.value.attr.size, file->content.size());
    ASSERT_EQ(changed.value.attr.mode & 07777, file->mode);
  }
  void SetAttribute(const std::string& dir, const std::string& name) {
    const auto file = RegularAt(dir, name);
    if (file == nullptr) return;
    const std::string key = absl::StrCat("user.a", Below(3));
    const std::string value = Text(10);
    const uint32_t flags = Below(3);  // XATTR_CREATE, XATTR_REPLACE
    const bool there = file->attributes.contains(key);
    const int expected = flags == XATTR_CREATE && there     ? EEXIST
                         : flags == XATTR_REPLACE && !there ? ENODATA
                                                            : 0;
    ASSERT_EQ(client().SetXattr(file->node, key, Bytes(value), flags), expected) << "setxattr";
    if (expected == 0) file->attributes[key] = value;
  }
  void RemoveAttribute(const std::string& dir, const std::string& name) {
    const auto file = RegularAt(dir, name);
    if (file == nullptr) return;
    const std::string key = absl::StrCat("user.a", Below(3));
    const bool there = file->attributes.erase(key) != 0;
    ASSERT_EQ(client().RemoveXattr(file->node, key), there ? 0 : ENODATA) << "removexattr";
  }
  // What the guest sees.
  void Look(const std::string& dir, const std::string& name) {
    const auto found = client().Lookup(tree_[dir].node, name);
    const auto file = At(dir, name);
    ASSERT_EQ(found.error, file == nullptr ? ENOENT : 0) << "lookup " << dir << "/" << name;
    if (file != nullptr) {
      ++file->lookups;
      ASSERT_EQ(found.value.nodeid, file->node);
      ASSERT_EQ(found.value.attr.nlink, file->links);
      const auto attr = client().GetAttr(file->node);
      ASSERT_EQ(attr.error, 0) << "getattr " << dir << "/" << name;
      ASSERT_EQ(attr.value.attr.size, file->content.size());
    }
    if (file != nullptr && file->kind == 'l') {
      const auto target = client().ReadLink(file->node);
      ASSERT_EQ(target.error, 0);
      ASSERT_EQ(target.value, file->content);
    } else if (file != nullptr) {
      const auto opened = client().Open(file->node, O_RDONLY);
      ASSERT_EQ(opened.error, 0);
      const auto read = client().Read(file->node, opened.value.fh, 0, 60'000);
      ASSERT_EQ(read.error, 0);
      ASSERT_EQ(std::string(reinterpret_cast<const char*>(read.value.data()), read.value.size()),
                file->content);
      ASSERT_EQ(client().Release(file->node, opened.value.fh), 0);
    }
    const auto opened = client().OpenDir(tree_[dir].node);
    ASSERT_EQ(opened.error, 0) << "opendir " << dir;
    std::set<std::string> names, expected = {".", ".."};
    for (uint64_t offset = 0;;) {
      // A few at a time, so that there may be a kill in between.
      const auto entries = client().ReadDir(tree_[dir].node, opened.value.fh, offset, 128);
      ASSERT_EQ(entries.error, 0) << "readdir " << dir;
      if (entries.value.empty()) break;
      for (const auto& entry : entries.value) {
        ASSERT_TRUE(names.insert(entry.name).second) << "twice: " << entry.name;
      }
      offset = entries.value.back().next_offset;
    }
    for (const auto& [one, unused] : tree_[dir].files) expected.insert(one);
    ASSERT_EQ(names, expected) << dir;
    ASSERT_EQ(client().ReleaseDir(tree_[dir].node, opened.value.fh), 0);
  }

  guest::FuseSession& session_;
  std::mt19937 random_;
  Tree tree_;
  std::vector<Handle> handles_;
  uint32_t number_ = 0;
  uint64_t appended_ = 0;
};

TEST_P(RestartWorkTest, EachOperationIsDoneOnceWhoeverIsKilled) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  Work work(session_.get(), Seed() * 7 + 1);
  StartKiller(Kills(), Seed() * 7 + 2);
  while (!finished_) {
    work.Step();
    ASSERT_FALSE(HasFatalFailure()) << "after " << kills_ << " kills, seed " << Seed();
    ++done_;
  }
  EndKiller();
  // What is still to be answered is, and a process that was told to end has.
  for (int i = 0; i < 100; ++i) ASSERT_NO_FATAL_FAILURE(work.Step());
  ASSERT_EQ(Describe(ReadTree(share())), Describe(work.model())) << "seed " << Seed();
  EXPECT_EQ(kills_, Kills());
  EXPECT_GE(restarts_, Kills() - 1);
  EXPECT_GT(work.appended(), static_cast<uint64_t>(Kills()));
}

// Many requests in flight at once on two queues, none depending on another.
TEST_P(RestartWorkTest, AllThatIsInFlightIsDoneOnce) {
  ASSERT_NO_FATAL_FAILURE(Begin());
  const auto dir = client().Mkdir(kRoot, "d", 0755);
  ASSERT_TRUE(dir.ok());
  constexpr size_t kLogs = 4;
  std::vector<guest::FuseCreated> logs;
  std::map<std::string, char> names;  // what they are
  std::vector<std::string> contents(kLogs);
  for (size_t i = 0; i < kLogs; ++i) {
    const std::string name = absl::StrCat("log", i);
    const auto log = client().Create(dir.value.nodeid, name, O_RDWR, 0644);
    ASSERT_TRUE(log.ok());
    logs.push_back(log.value);
    names[name] = 'L';
  }
  StartKiller(Kills(), Seed() * 7 + 3);
  uint32_t next = 0;
  struct Sent {
    guest::FuseQueue* queue;
    FuseSlot* slot;
    char kind;
    std::string name, other;
    size_t log = 0;
  };
  while (!finished_) {
    std::vector<Sent> sent;
    std::vector<std::string> old;  // each is used once in a round
    for (const auto& [name, kind] : names) {
      if (kind != 'L') old.push_back(name);
    }
    for (size_t i = 0; i < 24; ++i) {
      guest::FuseQueue& queue = session_->queue(i % 2);
      FuseSlot* const slot = queue.Acquire();
      ASSERT_NE(slot, nullptr);
      Sent one{&queue, slot, "dfsruaa"[i % 7], absl::StrCat("n", next++), "", 0};
      if ((one.kind == 'r' || one.kind == 'u') && old.size() < 20) one.kind = 'd';
      if (one.kind == 'a' && i / 7 * 2 + i % 2 >= kLogs) one.kind = 'f';
      switch (one.kind) {
        case 'd':
          slot->Begin(FUSE_MKDIR, dir.value.nodeid)
              .Put(fuse_mkdir_in{.mode = 0755, .umask = 0})
              .PutName(one.name)
              .Expect(sizeof(fuse_entry_out));
          break;
        case 'f':
          slot->Begin(FUSE_MKNOD, dir.value.nodeid)
              .Put(fuse_mknod_in{.mode = S_IFREG | 0644, .rdev = 0, .umask = 0, .padding = 0})
              .PutName(one.name)
              .Expect(sizeof(fuse_entry_out));
          break;
        case 's':
          slot->Begin(FUSE_SYMLINK, dir.value.nodeid)
              .PutName(one.name)
              .PutName("where/ever")
              .Expect(sizeof(fuse_entry_out));
          break;
        case 'r':
          one.other = old.back();
          old.pop_back();
          slot->Begin(FUSE_RENAME, dir.value.nodeid)
              .Put(fuse_rename_in{.newdir = dir.value.nodeid})
              .PutName(one.other)
              .PutName(one.name);
          break;
        case 'u':
          one.name = old.back();
          old.pop_back();
          slot->Begin(names[one.name] == 'd' ? FUSE_RMDIR : FUSE_UNLINK, dir.value.nodeid)
              .PutName(one.name);
          break;
        default: {
          // The guest's kernel has one append to a file under way at a time.
          one.log = i / 7 * 2 + i % 2;
          for (const Sent& other : sent) {
            ASSERT_FALSE(other.kind == 'a' && other.log == one.log);
          }
          one.other = absl::StrCat("<", next++, ">");
          std::memcpy(slot->data().data(), one.other.data(), one.other.size());
          slot->Begin(FUSE_WRITE, logs[one.log].entry.nodeid)
              .Put(fuse_write_in{.fh = logs[one.log].open.fh,
                                 .offset = 0,
                                 .size = static_cast<uint32_t>(one.other.size()),
                                 .write_flags = 0,
                                 .lock_owner = 0,
                                 .flags = O_WRONLY | O_APPEND,
                                 .padding = 0})
              .SendData(static_cast<uint32_t>(one.other.size()))
              .Expect(sizeof(fuse_write_out));
        }
      }
      ASSERT_OK(queue.Submit(slot));
      sent.push_back(one);
    }
    for (uint32_t i = 0; i < 2; ++i) session_->queue(i).Flush();
    std::vector<uint64_t> forget;
    for (const Sent& one : sent) {
      ASSERT_OK(one.queue->Await(one.slot));
      ASSERT_EQ(one.slot->error(), 0)
          << one.kind << " " << one.name << " after " << kills_ << " kills, seed " << Seed();
      fuse_entry_out entry{};
      switch (one.kind) {
        case 'a': {
          fuse_write_out wrote{};
          ASSERT_TRUE(one.slot->Get(&wrote));
          ASSERT_EQ(wrote.size, one.other.size());
          contents[one.log] += one.other;
          break;
        }
        case 'r':
          names[one.name] = names[one.other];
          names.erase(one.other);
          break;
        case 'u':
          names.erase(one.name);
          break;
        default:
          names[one.name] = one.kind;
          ASSERT_TRUE(one.slot->Get(&entry));
          forget.push_back(entry.nodeid);
      }
      one.queue->Release(one.slot);
      ++done_;
    }
    for (const uint64_t node : forget) ASSERT_EQ(session_->hiprio().Forget(node, 1), 0);
  }
  EndKiller();
  ASSERT_TRUE(client().GetAttr(kRoot).ok());
  std::map<std::string, char> there;
  for (const auto& entry : std::filesystem::directory_iterator(share() / "d")) {
    const std::string name = entry.path().filename().string();
    there[name] = name.starts_with("log") ? 'L'
                  : entry.is_symlink()    ? 's'
                  : entry.is_directory()  ? 'd'
                                          : 'f';
  }
  EXPECT_EQ(there, names);
  for (size_t i = 0; i < kLogs; ++i) {
    EXPECT_EQ(Contents(share() / "d" / absl::StrCat("log", i)), contents[i]);
    EXPECT_FALSE(contents[i].empty());
  }
  EXPECT_EQ(kills_, Kills());
}

INSTANTIATE_TEST_SUITE_P(Rings, RestartWorkTest, ::testing::Bool(),
                         [](const auto& of) { return of.param ? "Packed" : "Split"; });

}  // namespace
}  // namespace virtbay
