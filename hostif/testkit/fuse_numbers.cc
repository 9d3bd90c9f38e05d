#include "hostif/testkit/fuse_numbers.h"

#include <linux/fuse.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <vector>

namespace virtbay::testkit {
namespace {

constexpr size_t kArgs = sizeof(fuse_in_header);
constexpr size_t kBody = sizeof(fuse_out_header);
constexpr uint32_t kStatx = 52;        // newer than the headers here
constexpr size_t kStatxHandle = 8;     // of its arguments
constexpr uint32_t kCopyRange64 = 53;  // the same arguments as of COPY_FILE_RANGE

template <typename T>
bool Get(std::string_view bytes, size_t at, T* value) {
  if (at > bytes.size() || bytes.size() - at < sizeof(T)) return false;
  std::memcpy(value, bytes.data() + at, sizeof(T));
  return true;
}

// Puts what stands for the number there, if anything does.
void Replace(const std::map<uint64_t, uint64_t>& numbers, size_t at, std::string* bytes) {
  uint64_t number = 0;
  if (!Get(*bytes, at, &number)) return;
  const auto found = numbers.find(number);
  if (found != numbers.end()) std::memcpy(bytes->data() + at, &found->second, sizeof(number));
}

// Where the arguments of a request have a handle.
std::optional<size_t> HandleAt(uint32_t opcode) {
  switch (opcode) {
    case FUSE_GETATTR:
      return offsetof(fuse_getattr_in, fh);
    case FUSE_SETATTR:
      return offsetof(fuse_setattr_in, fh);
    case kStatx:
      return kStatxHandle;
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
      return offsetof(fuse_read_in, fh);
    case FUSE_WRITE:
      return offsetof(fuse_write_in, fh);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
      return offsetof(fuse_release_in, fh);
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
      return offsetof(fuse_fsync_in, fh);
    case FUSE_FLUSH:
      return offsetof(fuse_flush_in, fh);
    case FUSE_GETLK:
    case FUSE_SETLK:
    case FUSE_SETLKW:
      return offsetof(fuse_lk_in, fh);
    case FUSE_FALLOCATE:
      return offsetof(fuse_fallocate_in, fh);
    case FUSE_LSEEK:
      return offsetof(fuse_lseek_in, fh);
    case FUSE_IOCTL:
      return offsetof(fuse_ioctl_in, fh);
    case FUSE_POLL:
      return offsetof(fuse_poll_in, fh);
    case FUSE_COPY_FILE_RANGE:
    case kCopyRange64:
      return offsetof(fuse_copy_file_range_in, fh_in);
    default:
      return std::nullopt;
  }
}

struct Entry {
  std::string_view name;
  uint64_t node = 0;  // READDIRPLUS, if it counts as a look-up
  uint64_t next = 0;  // where to go on behind it
};

std::vector<Entry> Entries(std::string_view body, bool plus) {
  const size_t before = plus ? offsetof(fuse_direntplus, dirent) : 0;
  std::vector<Entry> entries;
  for (size_t at = 0; at < body.size();) {
    Entry entry;
    fuse_dirent head;
    if (plus && !Get(body, at, &entry.node)) break;
    if (body.size() - at < before + FUSE_NAME_OFFSET) break;
    std::memcpy(&head, body.data() + at + before, FUSE_NAME_OFFSET);
    const size_t name = at + before + FUSE_NAME_OFFSET;
    if (body.size() - name < head.namelen) break;
    entry.name = body.substr(name, head.namelen);
    entry.next = head.off;
    entries.push_back(entry);
    at += FUSE_DIRENT_ALIGN(before + FUSE_NAME_OFFSET + head.namelen);
  }
  return entries;
}

}  // namespace

void FuseNumbers::Translate(uint32_t queue, uint64_t id, std::string* request) {
  fuse_in_header header;
  if (!Get(*request, 0, &header)) return;
  Asked asked{header.opcode, 0};
  Replace(nodes_, offsetof(fuse_in_header, nodeid), request);
  switch (header.opcode) {
    case FUSE_LINK:
      Replace(nodes_, kArgs + offsetof(fuse_link_in, oldnodeid), request);
      break;
    case FUSE_RENAME:
    case FUSE_RENAME2:
      static_assert(offsetof(fuse_rename_in, newdir) == offsetof(fuse_rename2_in, newdir));
      Replace(nodes_, kArgs + offsetof(fuse_rename_in, newdir), request);
      break;
    case FUSE_COPY_FILE_RANGE:
    case kCopyRange64:
      Replace(nodes_, kArgs + offsetof(fuse_copy_file_range_in, nodeid_out), request);
      Replace(handles_, kArgs + offsetof(fuse_copy_file_range_in, fh_out), request);
      break;
    case FUSE_BATCH_FORGET: {
      fuse_batch_forget_in batch;
      if (!Get(*request, kArgs, &batch)) break;
      size_t at = kArgs + sizeof(batch);
      for (; batch.count > 0 && at < request->size(); --batch.count) {
        Replace(nodes_, at + offsetof(fuse_forget_one, nodeid), request);
        at += sizeof(fuse_forget_one);
      }
      break;
    }
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
      if (Get(*request, kArgs + offsetof(fuse_read_in, fh), &asked.fh)) {
        Replace(listings_[asked.fh].places, kArgs + offsetof(fuse_read_in, offset), request);
      }
      break;
    case FUSE_RELEASEDIR: {
      uint64_t fh = 0;
      if (Get(*request, kArgs + offsetof(fuse_release_in, fh), &fh)) listings_.erase(fh);
      break;
    }
    default:
      break;
  }
  if (const auto at = HandleAt(header.opcode)) Replace(handles_, kArgs + *at, request);
  asked_[{queue, id}] = asked;
}

void FuseNumbers::Learn(uint32_t queue, uint64_t id, std::string_view recorded,
                        std::string_view now) {
  const auto found = asked_.find({queue, id});
  if (found == asked_.end()) return;
  const Asked asked = found->second;
  asked_.erase(found);
  fuse_out_header then, here;
  if (!Get(recorded, 0, &then) || !Get(now, 0, &here) || then.error != 0 || here.error != 0) {
    return;
  }
  const auto learn = [&](std::map<uint64_t, uint64_t>* numbers, size_t at) {
    uint64_t from = 0, to = 0;
    if (Get(recorded, kBody + at, &from) && Get(now, kBody + at, &to) && from != 0) {
      (*numbers)[from] = to;
    }
  };
  switch (asked.opcode) {
    case FUSE_LOOKUP:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
      learn(&nodes_, offsetof(fuse_entry_out, nodeid));
      break;
    case FUSE_CREATE:
    case FUSE_TMPFILE:
      learn(&nodes_, offsetof(fuse_entry_out, nodeid));
      learn(&handles_, sizeof(fuse_entry_out) + offsetof(fuse_open_out, fh));
      break;
    case FUSE_OPEN:
    case FUSE_OPENDIR:
      learn(&handles_, offsetof(fuse_open_out, fh));
      break;
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
      LearnListing(&listings_[asked.fh], asked.opcode == FUSE_READDIRPLUS, recorded.substr(kBody),
                   now.substr(kBody));
      break;
    default:
      break;
  }
}

void FuseNumbers::LearnListing(Listing* listing, bool plus, std::string_view recorded,
                               std::string_view now) {
  const std::vector<Entry> then = Entries(recorded, plus);
  const std::vector<Entry> here = Entries(now, plus);
  for (size_t i = 0; i < then.size(); ++i) {
    // Names of other lengths make other pages: rather twice than not at all.
    if (!here.empty()) listing->places[then[i].next] = here[std::min(i, here.size() - 1)].next;
  }
  const auto note = [&](const Entry& entry, bool is_now) {
    auto& [from, to] = listing->nodes[std::string(entry.name)];
    (is_now ? to : from) = entry.node;
    if (from != 0 && to != 0) nodes_[from] = to;
  };
  if (!plus) return;
  for (const Entry& entry : then) note(entry, /*is_now=*/false);
  for (const Entry& entry : here) note(entry, /*is_now=*/true);
}

void FuseNumbers::Reset() {
  nodes_.clear();
  handles_.clear();
  listings_.clear();
  asked_.clear();
}

}  // namespace virtbay::testkit
