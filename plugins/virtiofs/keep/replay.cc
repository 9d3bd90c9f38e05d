#include "plugins/virtiofs/keep/replay.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

constexpr int kMaxErrno = 4095;

}  // namespace

bool Call::Replay() {
  keep::JournalEntry* const entry = fs.keep->At(worker.queue, request_.get()->head);
  if (entry == nullptr) return false;
  journal_ = entry;
  const bool known = entry->progress != keep::Progress::kNone && entry->run != fs.keep->run() &&
                     entry->unique == header_.unique && entry->opcode == header_.opcode &&
                     entry->node == header_.nodeid;
  if (!known) {
    fs.keep->Begin(entry, header_.unique, header_.opcode, header_.nodeid);
    // Forgotten once too seldom is an inode that is known for longer; twice, one that is lost.
    if (no_reply_) keep::Store::Finish(entry, 0, nullptr, 0);
    return false;
  }
  if (entry->progress != keep::Progress::kDone) {
    // Left as it is: this process may be killed as well before it has looked.
    half_done_ = fs.keep->Copy(worker.queue, *entry);
    std::atomic_ref<uint64_t>(entry->fh).store(0);
    std::atomic_ref<uint64_t>(entry->entered).store(0);
    if (no_reply_) keep::Store::Finish(entry, 0, nullptr, 0);
    return false;
  }
  journal_ = nullptr;
  if (no_reply_) {
    request_.Complete(0);
    return true;
  }
  // Whoever has written to the file need not have been a device.
  const int error = entry->error < 0 || entry->error > kMaxErrno ? EIO : entry->error;
  const size_t size =
      error != 0 ? 0 : std::min<size_t>({entry->body_size, entry->body.size(), room()});
  Answer(fs, std::move(request_), header_.unique, error,
         std::span<const std::byte>(entry->body).first(size));
  return true;
}

void Call::NoteAnswer(Fs& fs, const sdk::Request& request, uint64_t unique, int error,
                      std::span<const std::byte> body) {
  keep::JournalEntry* const entry = fs.keep->At(request.get()->queue, request.get()->head);
  if (entry == nullptr || entry->unique != unique ||
      (entry->progress != keep::Progress::kBegun && entry->progress != keep::Progress::kIntent)) {
    return;
  }
  keep::Store::Finish(entry, error, body.data(), static_cast<uint32_t>(body.size()));
}

namespace keep {
namespace {

Seen Of(const struct statx& st) {
  const InodeKey key = KeyOf(st);
  return {key.dev, key.ino, BirthOf(st), st.stx_mode, 0};
}

bool SameFile(const Seen& a, const Seen& b) {
  return a.there() && b.there() && a.dev == b.dev && a.ino == b.ino && a.birth_ns == b.birth_ns;
}

}  // namespace

Seen Look(const Call& c, int dir_fd, std::string_view name) {
  struct statx st;
  if (!c.journaled() || StatAt(dir_fd, name.data(), &st) != 0) return {};
  return Of(st);
}

bool BeginName(Call& c, int dir_fd, std::string_view name, mode_t type, const Inode* linked) {
  if (!c.journaled()) return false;
  Seen now = Look(c, dir_fd, name);
  const JournalEntry* const before = c.half_done();
  if (before != nullptr && !before->first.there() && now.there()) {
    if (linked != nullptr) {
      if (now.dev == linked->key.dev && now.ino == linked->key.ino) return true;
    } else {
      struct statx st;
      const bool ours =
          (now.mode & S_IFMT) == (type & S_IFMT) &&
          (now.birth_ns == 0 || static_cast<int64_t>(now.birth_ns) >= before->time_ns) &&
          (!S_ISREG(type) || (StatAt(dir_fd, name.data(), &st) == 0 && st.stx_size == 0));
      if (ours && ::unlinkat(dir_fd, name.data(), S_ISDIR(type) ? AT_REMOVEDIR : 0) == 0) now = {};
    }
  }
  c.Intend(now);
  return false;
}

bool BeginRemoval(Call& c, int dir_fd, std::string_view name) {
  if (!c.journaled()) return false;
  const Seen now = Look(c, dir_fd, name);
  if (const JournalEntry* const before = c.half_done();
      before != nullptr && before->first.there() && !SameFile(now, before->first)) {
    return true;
  }
  c.Intend(now);
  return false;
}

bool BeginRename(Call& c, int from_fd, std::string_view from, int to_fd, std::string_view to,
                 bool exchange) {
  if (!c.journaled()) return false;
  const Seen source = Look(c, from_fd, from);
  const Seen target = Look(c, to_fd, to);
  if (const JournalEntry* const before = c.half_done();
      before != nullptr && before->first.there() && SameFile(target, before->first)) {
    // Two names of one file stay as they are, whether it is done or not.
    if (exchange ? SameFile(source, before->second) : !SameFile(source, before->first)) return true;
  }
  c.Intend(source, target);
  return false;
}

uint32_t BeginAppend(Call& c, int fd, uint32_t size) {
  if (!c.journaled()) return 0;
  struct stat st {};
  if (::fstat(fd, &st) != 0) return 0;
  const auto now = static_cast<uint64_t>(st.st_size);
  if (const JournalEntry* const before = c.half_done(); before != nullptr) {
    // What it is noted with stays: the rest may be interrupted as well.
    if (now <= before->size) return 0;
    return static_cast<uint32_t>(std::min<uint64_t>(now - before->size, size));
  }
  c.Intend({}, {}, now);
  return 0;
}

uint64_t BeginCopy(Call& c, int fd, uint64_t offset, uint64_t length) {
  if (!c.journaled()) return length;
  if (const JournalEntry* const before = c.half_done(); before != nullptr) {
    // What it is noted with stays: the rest may be interrupted as well.
    return std::min(length, before->size);
  }
  struct stat st {};
  if (::fstat(fd, &st) != 0) return length;
  const auto size = static_cast<uint64_t>(st.st_size);
  c.Intend({}, {}, size > offset ? size - offset : 0);
  return length;
}

}  // namespace keep
}  // namespace virtbay::virtiofs
