// Store: what another process needs to go on with a guest's session after this one was killed, kept
// in a file of the state directory as it changes: the session, inodes with their names, open files,
// and a journal of the requests that must not be done twice.
// The file is mapped. Pages that were written outlive the process, so nothing is ever synced; a
// crash of the host ends the guest with it. Each change ends with one store that makes it valid.
// Owned by Fs; [any] but where marked. Records of one inode or handle change under its own lock.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_KEEP_STORE_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_KEEP_STORE_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "plugins/virtiofs/inode.h"
#include "virtbay/sdk/host.h"
#include "virtbay/sdk/result.h"

namespace virtbay::virtiofs::keep {

// ---- the file: a header, then three tables ------------------------------------------------------

struct Root {
  uint64_t dev = 0, ino = 0, birth_ns = 0, mount = 0;
};

struct Header {
  uint64_t magic = 0;
  uint32_t version = 0;
  uint32_t inodes = 0, handles = 0, queues = 0;  // places in each table
  uint64_t run = 0;                              // one more with each process
  Root root;
  uint64_t session_flags = 0;
  uint32_t ready = 0;  // there is a session
  // No index at or above these was ever used, nor a generation above those by one that is free.
  uint32_t inodes_end = 0, handles_end = 0;
  uint32_t inode_generation = 0, handle_generation = 0;
};

struct Name {
  uint32_t parent = 0;  // index + 1
  uint16_t size = 0;
  std::array<char, 256> text{};
};

struct InodeRecord {
  uint64_t node = 0;  // 0: free
  uint64_t lookups = 0;
  uint64_t dev = 0, ino = 0, mount = 0, birth_ns = 0;
  uint32_t nlink = 0;
  uint8_t type = 0;
  uint8_t name = 0;      // which of the two is valid, from 1; 0: none
  uint8_t other = 0;     // the other one may be, by now: a rename was begun
  uint8_t losing = 0;    // its name may be gone, by now: a removal was begun
  uint8_t replaced = 0;  // its number is another file's by now
  std::array<uint8_t, 3> padding{};
  std::array<Name, 2> names;
};

struct HandleRecord {
  uint64_t fh = 0;  // 0: free
  uint64_t node = 0;
  uint32_t flags = 0;  // of open(2)
  uint32_t padding = 0;
};

// A change of these needs another version.
static_assert(sizeof(Header) == 96 && sizeof(InodeRecord) == 592 && sizeof(HandleRecord) == 24);

// A file under a name, or the lack of one.
struct Seen {
  uint64_t dev = 0, ino = 0, birth_ns = 0;
  uint32_t mode = 0;  // 0: there is none
  uint32_t padding = 0;
  bool there() const { return mode != 0; }
  bool operator==(const Seen&) const = default;
};

enum class Progress : uint32_t {
  kNone = 0,
  kBegun = 1,   // taken, nothing done
  kIntent = 2,  // what the file system was like before is noted
  kDone = 3,    // answered
};

// Of the request that has, or had last, this head of its ring.
struct JournalEntry {
  uint64_t run = 0;
  uint64_t unique = 0;
  uint64_t node = 0;
  uint32_t opcode = 0;
  Progress progress = Progress::kNone;
  Seen first, second;  // kIntent
  uint64_t size = 0;   // kIntent: of the file, in bytes
  int64_t time_ns = 0;
  // Of what it makes, before the guest hears of it: a handle, and an inode looked up.
  uint64_t fh = 0;
  uint64_t entered = 0;
  int32_t error = 0;
  uint32_t body_size = 0;
  std::array<std::byte, 160> body{};
};
static_assert(sizeof(JournalEntry) == 296);

class Store {
 public:
  // What the tables need room for. Of more handles than that the rest is not kept.
  struct Shape {
    uint32_t inodes = 0, handles = 0, queues = 0;
  };
  // More than a process has by any usual limit, and the same whatever that is just now.
  static constexpr uint32_t kHandles = 1u << 20;

  // [control] Opens or makes the file in `dir`. One that is cut, or of another version or shape, or
  // no file, is replaced by a new one; with `serves`, when another generation of the device may be
  // writing to it, it is left alone, and there is no store. An error where there can be none.
  static sdk::Result<std::unique_ptr<Store>> Open(const sdk::Host* host, const std::string& dir,
                                                  const Shape& shape, bool serves = false);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Whether changes are written. Not while another generation of the device, or a later process,
  // is the one that serves.
  void Suspend() { writes_.store(false, std::memory_order_release); }
  void Resume() {
    if (!broken_.load(std::memory_order_relaxed)) writes_.store(true, std::memory_order_release);
  }
  bool writes() const { return writes_.load(std::memory_order_acquire); }

  // ---- [control] what the process before has left
  const Header& header() const { return *header_; }
  // Empty ones where nothing was ever written.
  const InodeRecord& inode(uint32_t index) { return RecordAt(inodes_, index); }
  const HandleRecord& handle(uint32_t index) { return RecordAt(handles_, index); }
  // Of what was being made when the process ended, and the guest has never heard of: takes lookups
  // back, and returns the handles. Before the tables are read.
  std::vector<uint64_t> TakeBackUnheard();
  // A new process goes on with it.
  void BeginRun() { Set(header_->run, header_->run + 1); }

  // Forgets everything: the session is over, or another one begins. `alone`: nobody else is about
  // to write, and what was there need not take room any more.
  void Clear(const Root& root, bool alone = false);
  void SetSession(uint64_t flags);

  void Born(const Inode& inode);
  void AddLookups(const Inode& inode, int64_t change);
  void Named(const Inode& inode, const Inode& parent, std::string_view name);
  // A rename that may come to nothing gives it that name.
  void MayBeNamed(const Inode& inode, const Inode& parent, std::string_view name);
  void Unnamed(const Inode& inode);
  // A removal that may come to nothing takes its name away.
  void MayLose(const Inode& inode);
  // Its number is another file's.
  void Replaced(const Inode& inode);
  void Died(uint32_t index, uint32_t next_generation);
  void Opened(uint32_t index, uint64_t fh, uint64_t node, int flags);
  void Closed(uint32_t index, uint32_t next_generation);

  // The entry of a head of that queue; nullptr: nothing is written.
  JournalEntry* At(uint32_t queue, uint32_t head);
  uint64_t run() const { return header_->run; }
  // [queue] A copy, which stays until the queue's next one.
  const JournalEntry* Copy(uint32_t queue, const JournalEntry& entry) {
    copies_[queue] = entry;
    return &copies_[queue];
  }
  // [queue] Steps of an entry, on its queue's thread.
  void Begin(JournalEntry* entry, uint64_t unique, uint32_t opcode, uint64_t node) const;
  static void Intend(JournalEntry* entry, const Seen& first, const Seen& second, uint64_t size);
  static void Finish(JournalEntry* entry, int error, const std::byte* body, uint32_t size);

 private:
  static constexpr uint32_t kHeads = 32768;  // of a ring at most
  static constexpr size_t kPiece = size_t{1} << 20;
  static_assert(std::is_trivially_copyable_v<Header> && std::is_trivially_copyable_v<InodeRecord> &&
                std::is_trivially_copyable_v<HandleRecord> &&
                std::is_trivially_copyable_v<JournalEntry>);

  explicit Store(const sdk::Host* host) : host_(host) {}
  // What is written of a table, which is mostly a hole. To look at a hole takes a block as well,
  // and where there is none, that would end the process.
  template <typename T, typename Visitor>
  void ForEachWritten(T* table, size_t count, Visitor&& visit);
  template <typename T>
  const T& RecordAt(T* table, uint32_t index) {
    static const T kNone{};
    return WasWritten(table + index) && HasBlocks(table + index, sizeof(T)) ? table[index] : kNone;
  }
  // Whether it begins in what was written when the file was opened.
  bool WasWritten(const void* at) const;
  bool HasBlocks(const void* at, size_t size);
  // How many of a table may have been written then.
  template <typename T>
  uint32_t Written(const T* table, uint32_t count) const;
  void FindWritten();
  static uint8_t WriteName(InodeRecord* record, const Inode& parent, std::string_view name);
  // What comes before it in the program is there for whoever sees it, what comes after is not.
  template <typename T>
  static void Set(T& field, T value) {
    std::atomic_ref<T>(field).store(value, std::memory_order_release);
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  static void Raise(uint32_t* most, uint32_t value);
  // Makes sure that the file has blocks there: a page that cannot be had would end the process.
  // False: it has none, and nothing is kept any more.
  bool Have(const void* at, size_t size);
  // Whether the file is one of this version and shape.
  bool Fits(const Shape& shape) const;
  bool Allocate(size_t piece);
  // Says so, once.
  void NoRoom(int error);
  JournalEntry* Entry(uint32_t queue, uint32_t head) const {
    return &journal_[size_t{queue} * kHeads + head];
  }

  const sdk::Host* const host_;
  int fd_ = -1;
  std::byte* base_ = nullptr;
  size_t size_ = 0;
  Header* header_ = nullptr;
  InodeRecord* inodes_ = nullptr;
  HandleRecord* handles_ = nullptr;
  JournalEntry* journal_ = nullptr;
  std::vector<JournalEntry> copies_;  // by queue
  std::atomic<bool> writes_{false};
  std::atomic<bool> broken_{false};
  // Places of the file that had been written when it was opened.
  struct Extent {
    size_t begin = 0, end = 0;
  };
  std::vector<Extent> written_;
  std::mutex pieces_mu_;
  std::vector<std::atomic<uint8_t>> pieces_;
};

}  // namespace virtbay::virtiofs::keep

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_KEEP_STORE_H_
