// StateTree: a tree of files, and states of a virtiofs device that serves it which were made with
// the same tree elsewhere. In these a file of the tree goes by its number (below) for its inode
// number, its device and mount by 1; here they become what they are, and descriptors are opened as
// the state says that they were. Of the state's form it knows version 1, by itself: a change of the
// form shows.
// Owned by a test; one thread.
#ifndef VIRTBAY_TESTS_SUPPORT_STATE_TREE_H_
#define VIRTBAY_TESTS_SUPPORT_STATE_TREE_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/state_parts.h"
#include "tests/support/temp_dir.h"

namespace virtbay::testing {

class StateTree {
 public:
  // The files by their numbers; the last one has no name any more.
  static constexpr std::array<const char*, 8> kNames = {".",      "a",      "a/b",  "a/file",
                                                        "a/cold", "a/link", "c/in", "a/gone"};
  static constexpr uint64_t kGone = kNames.size() - 1;

  StateTree() {
    std::filesystem::create_directories(dir_ / "a/b");
    std::filesystem::create_directories(dir_ / "c/in");
    for (const char* name : {"a/file", "a/cold", "a/gone", "a/b/one", "a/b/two"}) {
      dir_.Write(name, name);
    }
    std::filesystem::create_symlink("file", dir_ / "a/link");
    for (size_t i = 0; i < kNames.size(); ++i) {
      paths_[i] = ::open((dir_ / kNames[i]).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC);
      ::statx(paths_[i], "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID,
              &stats_[i]);
    }
    root_ = ::memfd_create("root", MFD_CLOEXEC);
    std::filesystem::remove(dir_ / kNames[kGone]);
  }
  ~StateTree() {
    for (const int fd : paths_) ::close(fd);
    ::close(root_);
  }
  StateTree(const StateTree&) = delete;
  StateTree& operator=(const StateTree&) = delete;

  const TempDir& dir() const { return dir_; }

  // From a state that was made with this very tree, and back.
  void Generalise(StateParts* state) const { Translate(state, false); }
  void Localise(StateParts* state) const { Translate(state, true); }

  // Descriptors as a localised state wants them, as far as it can be told; the caller's.
  std::vector<virtbay_state_fd> Open(StateParts* state) const {
    std::vector<virtbay_state_fd> fds;
    const bool aggregate = (Field<uint32_t>(state, kSession, 48, 0, 8) & 1) != 0;
    size_t shares = 0;
    const std::vector<std::byte>& bytes = state->Bytes(kShares);
    for (size_t at = 0; at + 32 <= bytes.size() && shares < 16; ++shares) {
      uint32_t sizes[3];
      std::memcpy(sizes, bytes.data() + at + 16, sizeof(sizes));
      const bool first = aggregate && shares == 0;
      fds.push_back({1, first ? ::fcntl(root_, F_DUPFD_CLOEXEC, 3)
                              : OpenFile(aggregate ? shares : 0, O_RDONLY | O_DIRECTORY)});
      at += size_t{32} + sizes[0] + sizes[1] + sizes[2];
    }
    const size_t inodes = state->Bytes(kInodes).size() / 56;
    for (size_t i = 0; i < inodes; ++i) {
      if ((Field<uint8_t>(state, kInodes, 56, i, 48) & 4) == 0) continue;
      fds.push_back({2, ::fcntl(paths_[FileAt(state, i)], F_DUPFD_CLOEXEC, 3)});
    }
    for (size_t i = 0; i < state->Bytes(kHandles).size() / 16; ++i) {
      const auto flags = Field<uint32_t>(state, kHandles, 16, i, 12);
      fds.push_back({3, OpenInode(state, Field<uint32_t>(state, kHandles, 16, i, 8), flags)});
    }
    for (size_t i = 0; i < state->Bytes(kLockOwners).size() / 40; ++i) {
      const auto flags = Field<uint32_t>(state, kLockOwners, 40, i, 32);
      fds.push_back({4, OpenInode(state, Field<uint32_t>(state, kLockOwners, 40, i, 24), flags)});
    }
    return fds;
  }

 private:
  static constexpr uint32_t kSession = 1, kShares = 2, kNumbers = 3, kPlaces = 4, kInodes = 5,
                            kHandles = 7, kLockOwners = 9;

  template <typename T>
  static T Field(StateParts* state, uint32_t tag, size_t record, size_t index, size_t at) {
    T value = {};
    const std::vector<std::byte>& bytes = state->Bytes(tag);
    if (record * index + at + sizeof(T) <= bytes.size()) {
      std::memcpy(&value, bytes.data() + record * index + at, sizeof(T));
    }
    return value;
  }
  static void Put(StateParts* state, uint32_t tag, size_t record, size_t index, size_t at,
                  uint64_t value) {
    std::memcpy(state->Bytes(tag).data() + record * index + at, &value, sizeof(value));
  }

  void Translate(StateParts* state, bool localise) const {
    const struct statx& st = stats_[0];
    const uint64_t dev = (static_cast<uint64_t>(st.stx_dev_major) << 32) | st.stx_dev_minor;
    const auto swap = [&](uint32_t tag, size_t at, uint64_t real) {
      for (size_t i = 0; i < state->Bytes(tag).size() / 24; ++i) {
        const auto value = Field<uint64_t>(state, tag, 24, i, at);
        if (value == (localise ? 1 : real)) Put(state, tag, 24, i, at, localise ? real : 1);
      }
    };
    swap(kPlaces, 0, dev);
    swap(kPlaces, 8, st.stx_mnt_id);
    swap(kNumbers, 0, dev);
    for (size_t i = 0; i < state->Bytes(kInodes).size() / 56; ++i) {
      const size_t file = localise ? Field<uint64_t>(state, kInodes, 56, i, 16) : FileAt(state, i);
      if (file == 0 || file >= kNames.size()) continue;
      const struct statx& of = stats_[file];
      const uint64_t btime =
          static_cast<uint64_t>(of.stx_btime.tv_sec) * 1'000'000'000u + of.stx_btime.tv_nsec;
      Put(state, kInodes, 56, i, 16, localise ? of.stx_ino : file);
      Put(state, kInodes, 56, i, 24, localise ? btime : 0);
    }
  }

  // The file of the i-th inode; 0: none.
  size_t FileAt(StateParts* state, size_t i) const {
    const auto ino = Field<uint64_t>(state, kInodes, 56, i, 16);
    for (size_t file = 1; file < kNames.size(); ++file) {
      if (stats_[file].stx_ino == ino) return file;
    }
    return 0;
  }
  int OpenFile(size_t file, int flags) const {
    if (file >= kNames.size()) file = 0;
    if (S_ISDIR(stats_[file].stx_mode)) flags = O_RDONLY | O_DIRECTORY;
    const std::string name = "/proc/self/fd/" + std::to_string(paths_[file]);
    return ::open(name.c_str(), flags | O_CLOEXEC);
  }
  // `place`: index + 1; flags: 1 for reading, 2 for writing.
  int OpenInode(StateParts* state, uint32_t place, uint32_t flags) const {
    const int mode = (flags & 3) == 3 ? O_RDWR : (flags & 2) != 0 ? O_WRONLY : O_RDONLY;
    for (size_t i = 0; i < state->Bytes(kInodes).size() / 56; ++i) {
      const auto node = Field<uint64_t>(state, kInodes, 56, i, 0);
      if (static_cast<uint32_t>(node) == place) return OpenFile(FileAt(state, i), mode);
    }
    return OpenFile(0, O_RDONLY | O_DIRECTORY);
  }

  TempDir dir_;
  std::array<int, kNames.size()> paths_ = {};
  std::array<struct statx, kNames.size()> stats_ = {};
  int root_ = -1;
};

}  // namespace virtbay::testing

#endif  // VIRTBAY_TESTS_SUPPORT_STATE_TREE_H_
