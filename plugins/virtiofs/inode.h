// Inode: one file of the share that the guest knows, and the references that keep it.
// Slots of the InodeTable own it; they are type-stable (never freed while the device lives), so a
// stale nodeid can be tested safely. Which lock guards which member is said at the member.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_INODE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_INODE_H_

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <string_view>
#include <utility>

#include "plugins/virtiofs/share.h"

namespace virtbay::virtiofs {

struct Handle;
struct LockOwner;
struct FileHandle;
class InodeTable;

// What tells one inode of the host from another. The birth time is compared too (`Inode::btime`),
// because file systems use inode numbers again at once.
struct InodeKey {
  uint64_t dev = 0;
  uint64_t ino = 0;
  uint64_t mnt_id = 0;
  bool operator==(const InodeKey&) const = default;
};

inline InodeKey KeyOf(const struct statx& st) {
  return {(static_cast<uint64_t>(st.stx_dev_major) << 32) | st.stx_dev_minor, st.stx_ino,
          (st.stx_mask & STATX_MNT_ID) != 0 ? st.stx_mnt_id : 0};
}

// Nanoseconds of birth; 0 where the file system has none.
inline uint64_t BirthOf(const struct statx& st) {
  if ((st.stx_mask & STATX_BTIME) == 0) return 0;
  return static_cast<uint64_t>(st.stx_btime.tv_sec) * 1'000'000'000u + st.stx_btime.tv_nsec;
}

struct Inode {
  static constexpr uint64_t kRefMask = 0xffffffffu;
  static constexpr uint32_t kInlineName = 38;

  // generation << 32 | references. A reference is: the guest's lookups as a whole, a child's
  // parent pointer, an open handle, or an operation at work. 0 references: free, or about to be.
  std::atomic<uint64_t> word{0};
  std::atomic<uint64_t> nlookup{0};
  // (O_PATH descriptor + 1) << 32 | users of the descriptor; see FdBudget.
  std::atomic<uint64_t> fd_word{0};
  std::atomic<FileHandle*> file_handle{nullptr};
  std::atomic<LockOwner*> lock_owners{nullptr};  // list, guarded by LockOwners' stripe

  // Constant while referenced.
  InodeKey key;
  uint64_t btime = 0;
  Share* share = nullptr;
  uint32_t index = 0;
  uint8_t type = 0;  // S_IFMT >> 12

  bool hashed = false;                   // guarded by the key shard
  uint32_t next_key = 0;                 // guarded by the key shard; free list as well
  std::atomic<uint32_t> nlink{0};        // as last seen
  std::atomic<bool> fd_used{false};      // the clock hand's second chance
  std::atomic<bool> keep_fd{false};      // nameless: the descriptor is the only way to it
  std::atomic<uint32_t> ring_at{0};      // place in FdBudget's clock + 1, 0 = none
  std::atomic<uint32_t> open_handle{0};  // list head: handle index + 1, guarded by HandleTable

  // Name: guarded by the name shard that name_shard names.
  std::atomic<uint8_t> name_shard{0};
  bool named = false;
  uint16_t name_len = 0;
  uint32_t name_hash = 0;
  uint32_t next_name = 0;
  Inode* parent = nullptr;  // referenced
  union {
    std::array<char, kInlineName + 2> inline_name;
    char* long_name;
  };

  Inode() : inline_name{} {}

  uint32_t generation() const {
    return static_cast<uint32_t>(word.load(std::memory_order_acquire) >> 32);
  }
  uint64_t nodeid() const { return (static_cast<uint64_t>(generation()) << 32) | (index + 1); }
  bool is_dir() const { return type == (S_IFDIR >> 12); }
  bool is_regular() const { return type == (S_IFREG >> 12); }
  bool is_symlink() const { return type == (S_IFLNK >> 12); }
  std::string_view name() const {
    return {name_len <= kInlineName ? inline_name.data() : long_name, name_len};
  }

  // Is this the file that the statx described?
  bool Matches(const struct statx& st) const {
    return KeyOf(st) == key && (st.stx_mode >> 12) == type &&
           (!share->check_birth || btime == 0 || BirthOf(st) == btime);
  }
};

// A counted reference on an Inode.
class InodeRef {
 public:
  InodeRef() = default;
  // Takes over one reference.
  InodeRef(InodeTable* table, Inode* inode) : table_(table), inode_(inode) {}
  InodeRef(InodeRef&& other) noexcept
      : table_(other.table_), inode_(std::exchange(other.inode_, nullptr)) {}
  InodeRef& operator=(InodeRef&& other) noexcept {
    if (this != &other) {
      Reset();
      table_ = other.table_;
      inode_ = std::exchange(other.inode_, nullptr);
    }
    return *this;
  }
  ~InodeRef() { Reset(); }

  explicit operator bool() const { return inode_ != nullptr; }
  Inode* get() const { return inode_; }
  Inode& operator*() const { return *inode_; }
  Inode* operator->() const { return inode_; }
  // Gives the reference to the caller.
  Inode* Release() { return std::exchange(inode_, nullptr); }
  void Reset();

 private:
  InodeTable* table_ = nullptr;
  Inode* inode_ = nullptr;
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_INODE_H_
