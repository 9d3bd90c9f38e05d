#include "tests/bench/fs_workload.h"

#include <fcntl.h>

#include <array>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "tests/bench/fs_data.h"

namespace virtbay::bench {
namespace {

using guest::FuseClient;
using guest::FuseQueue;
using guest::FuseSession;
using guest::FuseSlot;

absl::Status Check(int error, const char* what) {
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, " failed: ", error));
}

// splitmix64: cheap, and the same sequence for every subject.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

 private:
  uint64_t state_;
};

// Gives look-ups back on the hiprio queue, many at a time and without waiting, as a kernel does.
class Forgetter {
 public:
  void Attach(FuseQueue* hiprio) { hiprio_ = hiprio; }

  bool Add(uint64_t node) {
    items_.push_back({.nodeid = node, .nlookup = 1});
    return items_.size() < kBatch || Send();
  }
  // Sends the rest and waits until the device has taken everything.
  absl::Status Drain() {
    if (!items_.empty() && !Send()) return absl::UnavailableError("FORGET was not taken");
    while (hiprio_->in_flight() != 0) {
      VIRTBAY_RETURN_IF_ERROR(hiprio_->Wait());
      Reap();
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kBatch = 256;

  void Reap() {
    std::array<FuseSlot*, 16> done;
    const size_t n = hiprio_->Reap(done);
    for (size_t i = 0; i < n; ++i) hiprio_->Release(done[i]);
  }
  bool Send() {
    FuseSlot* slot = nullptr;
    for (Reap(); (slot = hiprio_->Acquire()) == nullptr; Reap()) {
      if (!hiprio_->Wait().ok()) return false;
    }
    slot->Begin(FUSE_BATCH_FORGET, 0)
        .Put(fuse_batch_forget_in{.count = static_cast<uint32_t>(items_.size()), .dummy = 0})
        .PutBytes(std::as_bytes(std::span(items_)))
        .NoReply();
    items_.clear();
    if (!hiprio_->Submit(slot).ok()) return false;
    hiprio_->Flush();
    return true;
  }

  FuseQueue* hiprio_ = nullptr;
  std::vector<fuse_forget_one> items_;
};

// A file or directory of the shared directory that stays looked up and open.
class OpenFile {
 public:
  absl::Status Open(FuseClient& client, const char* name, uint32_t flags) {
    client_ = &client;
    flags_ = flags;
    const auto entry = client.Lookup(guest::kFuseRootId, name);
    VIRTBAY_RETURN_IF_ERROR(Check(entry.error, name));
    node = entry.value.nodeid;
    if ((flags & O_DIRECTORY) != 0) return absl::OkStatus();
    const auto open = client.Open(node, flags);
    VIRTBAY_RETURN_IF_ERROR(Check(open.error, "OPEN"));
    fh = open.value.fh;
    return absl::OkStatus();
  }
  absl::Status Close() {
    if ((flags_ & O_DIRECTORY) != 0) return absl::OkStatus();
    return Check(client_->Release(node, fh), "RELEASE");
  }

  uint64_t node = 0;
  uint64_t fh = 0;
  uint32_t flags() const { return flags_; }

 private:
  FuseClient* client_ = nullptr;
  uint32_t flags_ = 0;
};

// LOOKUP then GETATTR of each small file; between passes everything is forgotten, so that every
// look-up is a first one.
class LookupGetattr : public FsWorkload {
 public:
  explicit LookupGetattr(bool endless) : endless_(endless) {}

  absl::Status Prepare(FuseSession& session) override {
    forgetter_.Attach(&session.hiprio_queue());
    return dir_.Open(session.client(), "files", O_DIRECTORY);
  }
  bool Start(FsOp& op) override {
    if (next_ == kFsFiles) {
      if (!endless_) return false;
      next_ = 0;
    }
    op.index = next_++;
    op.step = 0;
    op.slot->Begin(FUSE_LOOKUP, dir_.node)
        .PutName(FsFileName(op.index).data())
        .Expect(sizeof(fuse_entry_out));
    return true;
  }
  bool Step(FsOp& op) override {
    if (op.step++ == 0) {
      fuse_entry_out entry{};
      if (!op.slot->Get(&entry) || entry.attr.size != FsFileSize(op.index)) {
        op.error = "LOOKUP gave the wrong file";
        return false;
      }
      op.node = entry.nodeid;
      op.slot->Begin(FUSE_GETATTR, op.node).Put(fuse_getattr_in{}).Expect(sizeof(fuse_attr_out));
      return true;
    }
    fuse_attr_out attr{};
    if (!op.slot->Get(&attr) || attr.attr.size != FsFileSize(op.index)) {
      op.error = "GETATTR gave the wrong attributes";
    }
    if (!forgetter_.Add(op.node)) op.error = "FORGET was not taken";
    return false;
  }
  absl::Status EndPass() override {
    next_ = 0;
    return forgetter_.Drain();
  }
  absl::Status Finish() override { return forgetter_.Drain(); }

 private:
  const bool endless_;
  OpenFile dir_;
  Forgetter forgetter_;
  uint32_t next_ = 0;
};

// Lists the directory of small files; one operation is one READDIRPLUS of a page, which is what
// Linux asks for at a time. The first of a pass has OPENDIR before it, the last RELEASEDIR behind.
class ReadDirPlus : public FsWorkload {
 public:
  absl::Status Prepare(FuseSession& session) override {
    forgetter_.Attach(&session.hiprio_queue());
    return dir_.Open(session.client(), "files", O_DIRECTORY);
  }
  bool Start(FsOp& op) override {
    if (finished_) return false;
    if (open_) {
      Ask(op);
    } else {
      op.step = kOpened;
      op.slot->Begin(FUSE_OPENDIR, dir_.node).Put(fuse_open_in{}).Expect(sizeof(fuse_open_out));
    }
    return true;
  }
  bool Step(FsOp& op) override {
    switch (op.step) {
      case kOpened: {
        fuse_open_out out{};
        if (!op.slot->Get(&out)) op.error = "OPENDIR gave nothing";
        fh_ = out.fh;
        open_ = true;
        offset_ = 0;
        Ask(op);
        return true;
      }
      case kRead: {
        const uint32_t entries = Walk(op);
        op.units = entries;
        seen_ += entries;
        if (entries != 0 || op.error != nullptr) return false;
        op.step = kReleased;
        op.slot->Begin(FUSE_RELEASEDIR, dir_.node)
            .Put(fuse_release_in{.fh = fh_, .flags = 0, .release_flags = 0, .lock_owner = 0})
            .Expect(0);
        return true;
      }
      default:
        // With "." and ".." or without.
        if (seen_ != kFsFiles && seen_ != kFsFiles + 2) op.error = "READDIRPLUS missed entries";
        op.units = 0;
        finished_ = true;
        return false;
    }
  }
  absl::Status EndPass() override {
    finished_ = open_ = false;
    seen_ = 0;
    return forgetter_.Drain();
  }
  absl::Status Finish() override {
    finished_ = false;
    return forgetter_.Drain();
  }

 private:
  enum : uint32_t { kOpened, kRead, kReleased };

  void Ask(FsOp& op) {
    op.step = kRead;
    op.slot->Begin(FUSE_READDIRPLUS, dir_.node)
        .Put(fuse_read_in{.fh = fh_,
                          .offset = offset_,
                          .size = kFsBlock,
                          .read_flags = 0,
                          .lock_owner = 0,
                          .flags = 0,
                          .padding = 0})
        .Expect(0, kFsBlock);
  }

  uint32_t Walk(FsOp& op) {
    std::span<const std::byte> data = op.slot->reply_data();
    uint32_t entries = 0;
    constexpr size_t kFront = offsetof(fuse_direntplus, dirent.name);
    while (!data.empty()) {
      fuse_entry_out entry{};
      fuse_dirent dirent{};
      if (data.size() < kFront) break;
      std::memcpy(&entry, data.data(), sizeof(entry));
      std::memcpy(&dirent, data.data() + sizeof(entry), offsetof(fuse_dirent, name));
      const size_t size = FUSE_DIRENT_ALIGN(kFront + dirent.namelen);
      if (size > data.size()) break;
      offset_ = dirent.off;
      if (entry.nodeid != 0 && !forgetter_.Add(entry.nodeid)) op.error = "FORGET was not taken";
      ++entries;
      data = data.subspan(size);
    }
    if (!data.empty()) op.error = "READDIRPLUS gave a malformed entry";
    return entries;
  }

  OpenFile dir_;
  Forgetter forgetter_;
  uint64_t fh_ = 0;
  uint64_t offset_ = 0;
  uint32_t seen_ = 0;
  bool open_ = false;
  bool finished_ = false;
};

// CREATE, WRITE, FLUSH, RELEASE, UNLINK, each after the other's answer.
class CreateUnlink : public FsWorkload {
 public:
  absl::Status Prepare(FuseSession& session) override {
    forgetter_.Attach(&session.hiprio_queue());
    return dir_.Open(session.client(), "scratch", O_DIRECTORY);
  }
  bool Start(FsOp& op) override {
    op.index = next_++;
    op.step = 0;
    op.slot->Begin(FUSE_CREATE, dir_.node)
        .Put(fuse_create_in{.flags = O_CREAT | O_EXCL | O_RDWR,
                            .mode = S_IFREG | 0644,
                            .umask = 022,
                            .open_flags = 0})
        .PutName(Name(op.index).data())
        .Expect(sizeof(guest::FuseCreated));
    return true;
  }
  bool Step(FsOp& op) override {
    switch (op.step++) {
      case 0: {
        guest::FuseCreated created{};
        if (!op.slot->Get(&created)) op.error = "CREATE gave nothing";
        op.node = created.entry.nodeid;
        op.fh = created.open.fh;
        op.slot->Begin(FUSE_WRITE, op.node)
            .Put(fuse_write_in{.fh = op.fh,
                               .offset = 0,
                               .size = kFsBlock,
                               .write_flags = 0,
                               .lock_owner = 0,
                               .flags = O_RDWR,
                               .padding = 0})
            .SendData(kFsBlock)
            .Expect(sizeof(fuse_write_out));
        return true;
      }
      case 1: {
        fuse_write_out out{};
        if (!op.slot->Get(&out) || out.size != kFsBlock) op.error = "WRITE was short";
        op.slot->Begin(FUSE_FLUSH, op.node)
            .Put(fuse_flush_in{.fh = op.fh, .unused = 0, .padding = 0, .lock_owner = 1})
            .Expect(0);
        return true;
      }
      case 2:
        op.slot->Begin(FUSE_RELEASE, op.node)
            .Put(fuse_release_in{.fh = op.fh, .flags = O_RDWR, .release_flags = 0, .lock_owner = 0})
            .Expect(0);
        return true;
      case 3:
        op.slot->Begin(FUSE_UNLINK, dir_.node).PutName(Name(op.index).data()).Expect(0);
        return true;
      default:
        if (!forgetter_.Add(op.node)) op.error = "FORGET was not taken";
        return false;
    }
  }
  absl::Status Finish() override { return forgetter_.Drain(); }

 private:
  static std::array<char, 16> Name(uint32_t index) {
    std::array<char, 16> name;
    std::snprintf(name.data(), name.size(), "c%010u", index);
    return name;
  }

  OpenFile dir_;
  Forgetter forgetter_;
  uint32_t next_ = 0;
};

// Reads of `size` at random or rising offsets of "data", checked at both ends.
class Read : public FsWorkload {
 public:
  Read(uint32_t size, bool random, uint32_t flags) : size_(size), random_(random), flags_(flags) {}

  absl::Status Prepare(FuseSession& session) override {
    return file_.Open(session.client(), "data", O_RDONLY | flags_);
  }
  bool Start(FsOp& op) override {
    const uint64_t blocks = kFsReadSize / size_;
    op.offset = (random_ ? dice_.Next() % blocks : next_++ % blocks) * size_;
    op.units = size_ == kFsChunk ? size_ / 1e6 : 1;
    op.slot->Begin(FUSE_READ, file_.node)
        .Put(fuse_read_in{.fh = file_.fh,
                          .offset = op.offset,
                          .size = size_,
                          .read_flags = 0,
                          .lock_owner = 0,
                          .flags = file_.flags(),
                          .padding = 0})
        .Expect(0, size_);
    return true;
  }
  bool Step(FsOp& op) override {
    const auto data = op.slot->reply_data();
    if (data.size() != size_ || !FsCheckEnds(data, op.offset, 0)) op.error = "READ gave wrong data";
    return false;
  }
  absl::Status Finish() override { return file_.Close(); }

 private:
  const uint32_t size_;
  const bool random_;
  const uint32_t flags_;
  OpenFile file_;
  Random dice_{1};
  uint64_t next_ = 0;
};

// Writes to "out"; what the last ones wrote is read back at the end.
class Write : public FsWorkload {
 public:
  Write(uint32_t size, bool random, uint64_t salt) : size_(size), random_(random), salt_(salt) {}

  absl::Status Prepare(FuseSession& session) override {
    client_ = &session.client();
    return file_.Open(session.client(), "out", O_RDWR);
  }
  bool Start(FsOp& op) override {
    const uint64_t blocks = kFsWriteSize / size_;
    op.offset = (random_ ? dice_.Next() % blocks : next_ % blocks) * size_;
    op.units = size_ == kFsChunk ? size_ / 1e6 : 1;
    written_[next_++ % written_.size()] = op.offset;
    FsStamp(op.slot->data().first(size_), op.offset, salt_);
    op.slot->Begin(FUSE_WRITE, file_.node)
        .Put(fuse_write_in{.fh = file_.fh,
                           .offset = op.offset,
                           .size = size_,
                           .write_flags = 0,
                           .lock_owner = 0,
                           .flags = file_.flags(),
                           .padding = 0})
        .SendData(size_)
        .Expect(sizeof(fuse_write_out));
    return true;
  }
  bool Step(FsOp& op) override {
    fuse_write_out out{};
    if (!op.slot->Get(&out) || out.size != size_) op.error = "WRITE was short";
    return false;
  }
  absl::Status Finish() override {
    const size_t count = std::min<uint64_t>(next_, written_.size());
    for (size_t i = 0; i < count; ++i) {
      const auto back = client_->Read(file_.node, file_.fh, written_[i], size_);
      VIRTBAY_RETURN_IF_ERROR(Check(back.error, "reading back"));
      if (back.value.size() != size_ || !FsCheckEnds(back.value, written_[i], salt_)) {
        return absl::DataLossError(absl::StrCat("what was written at ", written_[i], " is gone"));
      }
    }
    return file_.Close();
  }

 private:
  const uint32_t size_;
  const bool random_;
  const uint64_t salt_;
  FuseClient* client_ = nullptr;
  OpenFile file_;
  Random dice_{2};
  uint64_t next_ = 0;
  std::array<uint64_t, 32> written_{};
};

class Mixed : public FsWorkload {
 public:
  explicit Mixed(uint64_t salt) {
    parts_[0] = std::make_unique<Read>(kFsBlock, true, 0);
    parts_[1] = std::make_unique<Write>(kFsBlock, true, salt);
    parts_[2] = std::make_unique<LookupGetattr>(true);
    parts_[3] = std::make_unique<CreateUnlink>();
  }

  absl::Status Prepare(FuseSession& session) override {
    for (const auto& part : parts_) VIRTBAY_RETURN_IF_ERROR(part->Prepare(session));
    return absl::OkStatus();
  }
  bool Start(FsOp& op) override {
    const uint64_t percent = dice_.Next() % 100;
    op.kind = percent < 60 ? 0 : percent < 80 ? 1 : percent < 95 ? 2 : 3;
    return parts_[op.kind]->Start(op);
  }
  bool Step(FsOp& op) override { return parts_[op.kind]->Step(op); }
  absl::Status Finish() override {
    for (const auto& part : parts_) VIRTBAY_RETURN_IF_ERROR(part->Finish());
    return absl::OkStatus();
  }

 private:
  std::array<std::unique_ptr<FsWorkload>, 4> parts_;
  Random dice_{3};
};

}  // namespace

std::unique_ptr<FsWorkload> MakeFsWorkload(FsKind kind, uint64_t salt) {
  switch (kind) {
    case FsKind::kLookupGetattr:
      return std::make_unique<LookupGetattr>(false);
    case FsKind::kReadDirPlus:
      return std::make_unique<ReadDirPlus>();
    case FsKind::kCreateUnlink:
      return std::make_unique<CreateUnlink>();
    case FsKind::kRandomRead:
      return std::make_unique<Read>(kFsBlock, true, 0);
    case FsKind::kRandomReadDirect:
      return std::make_unique<Read>(kFsBlock, true, O_DIRECT);
    case FsKind::kRandomWrite:
      return std::make_unique<Write>(kFsBlock, true, salt);
    case FsKind::kSequentialRead:
      return std::make_unique<Read>(kFsChunk, false, 0);
    case FsKind::kSequentialWrite:
      return std::make_unique<Write>(kFsChunk, false, salt);
    case FsKind::kMixed:
      return std::make_unique<Mixed>(salt);
  }
  return nullptr;
}

absl::Status VerifyFsData(FuseSession& session) {
  OpenFile file;
  FuseClient& client = session.client();
  VIRTBAY_RETURN_IF_ERROR(file.Open(client, "data", O_RDONLY));
  Random dice(4);
  for (int i = 0; i < 16; ++i) {
    const uint64_t offset = dice.Next() % (kFsReadSize - kFsChunk) / 8 * 8;
    const auto read = client.Read(file.node, file.fh, offset, kFsChunk);
    VIRTBAY_RETURN_IF_ERROR(Check(read.error, "READ"));
    if (read.value.size() != kFsChunk || !FsCheckAll(read.value, offset, 0)) {
      return absl::DataLossError(absl::StrCat("1 MiB at ", offset, " came wrong"));
    }
  }
  return file.Close();
}

}  // namespace virtbay::bench
