// Call: one FUSE request while its handler runs: the parsed header, checked access to the
// arguments, and the answer.
// Lives on the queue thread's stack. Guest-controlled: every field of header() and every argument.
#ifndef VIRTBAY_PLUGINS_VIRTIOFS_CALL_H_
#define VIRTBAY_PLUGINS_VIRTIOFS_CALL_H_

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "plugins/virtiofs/fs.h"
#include "plugins/virtiofs/wire.h"
#include "plugins/virtiofs/worker.h"
#include "virtbay/sdk/request.h"

namespace virtbay::virtiofs {

class Call {
 public:
  Call(Fs& the_fs, Worker& the_worker, sdk::Request request)
      : fs(the_fs), worker(the_worker), request_(std::move(request)) {}

  Fs& fs;
  Worker& worker;

  // [queue] Reads the header. False: malformed, and answered.
  bool Begin();

  const fuse_in_header& header() const { return header_; }
  sdk::Request& request() { return request_; }
  uint64_t unique() const { return header_.unique; }
  // Bytes that the guest sent behind the header.
  uint32_t arg_bytes() const { return header_.len - kInHeader; }
  // Bytes that the answer may have behind its header.
  uint32_t room() const {
    return request_.out_total() < kOutHeader ? 0 : request_.out_total() - kOutHeader;
  }

  // [queue] The fixed argument struct; zeroes where the guest sent less (older minors).
  template <typename T>
  T Arg() const {
    T value = {};
    const size_t have = std::min<size_t>(arg_bytes(), request_.in().size() - kInHeader);
    std::memcpy(static_cast<void*>(&value), request_.in().data() + kInHeader,
                std::min(sizeof(T), have));
    return value;
  }

  // [queue] The bytes between the first `fixed` argument bytes and the extensions, fetched if they
  // are beyond the view. 0 or errno.
  int Tail(uint32_t fixed, std::span<const std::byte>* tail);
  // [queue] The tail as exactly one name. 0 or errno.
  int Name(uint32_t fixed, std::string_view* name);
  // [queue] The tail as exactly two texts: the first a name, the second whatever `second_is_name`
  // says. 0 or errno.
  int TwoTexts(uint32_t fixed, bool second_is_name, std::string_view* first,
               std::string_view* second);
  // [queue] Supplementary groups of the extensions (7.38); *known tells whether the guest sent the
  // extension. At most kMaxGroups. 0 or errno.
  static constexpr size_t kMaxGroups = 32;
  int Groups(std::array<uint32_t, kMaxGroups>* groups, size_t* count);

  // [queue] The inode that the header names; empty after answering ESTALE.
  InodeRef Target();
  // [queue] An inode that an argument names.
  InodeRef Find(uint64_t nodeid) { return fs.inodes.Find(nodeid); }

  // [queue] Ends the request with an error (positive errno), or success and no body. Requests
  // without an answer (FORGET) end with nothing written.
  void Error(int error);
  void Ok() { Finish(0); }
  template <typename T>
  void Reply(const T& body) {
    std::byte* space = Body(sizeof(T));
    if (space == nullptr) return Error(ENOMEM);
    std::memcpy(space, &body, sizeof(T));
    Finish(sizeof(T));
  }
  // [queue] Space for at least n bytes of body (n <= room()); nullptr when there is none.
  std::byte* Body(uint32_t n);
  // [queue] The space that Body() gave, in bytes.
  uint32_t BodySpace() const { return static_cast<uint32_t>(request_.out().size()) - kOutHeader; }
  // [queue] Ends the request: n bytes of body are in the view.
  void Finish(uint32_t n);

  // ---- requests that must not be done twice (keep/replay.cc)
  // [queue] Enters the request in the journal. True: a process before this one has answered it, and
  // it has been answered so again.
  bool Replay();
  // [queue] A process before this one was killed while it did the request.
  bool repeated() const { return half_done_ != nullptr; }
  // [queue] What that one had noted of the file system then, if it came to that; else nullptr.
  const keep::JournalEntry* half_done() const {
    return half_done_ != nullptr && half_done_->progress == keep::Progress::kIntent ? half_done_
                                                                                    : nullptr;
  }
  bool journaled() const { return journal_ != nullptr; }
  // [queue] Notes what it is like before the request is done.
  void Intend(const keep::Seen& first, const keep::Seen& second = {}, uint64_t size = 0) {
    if (journal_ != nullptr) keep::Store::Intend(journal_, first, second, size);
  }
  // [queue] The handle that the request makes, and the inode to which it adds a lookup, before
  // anybody else may find them.
  void IntendHandle(uint64_t fh) {
    if (journal_ != nullptr) std::atomic_ref<uint64_t>(journal_->fh).store(fh);
  }
  void IntendLookup(uint64_t nodeid) {
    if (journal_ != nullptr) std::atomic_ref<uint64_t>(journal_->entered).store(nodeid);
  }

  void set_no_reply() { no_reply_ = true; }
  bool ended() const { return !request_; }

  // Ends a request that was under way as an AsyncOp.
  static void Answer(Fs& fs, sdk::Request request, uint64_t unique, int error,
                     std::span<const std::byte> body);
  // Ends a READ: `moved` bytes are in the guest already.
  static void AnswerData(sdk::Request request, uint64_t unique, uint32_t moved);

 private:
  int Whole(std::span<const std::byte>* whole);
  // In the journal: how a request is answered, before it is.
  static void NoteAnswer(Fs& fs, const sdk::Request& request, uint64_t unique, int error,
                         std::span<const std::byte> body);

  sdk::Request request_;
  fuse_in_header header_ = {};
  bool no_reply_ = false;
  keep::JournalEntry* journal_ = nullptr;          // of this request, if it has one
  const keep::JournalEntry* half_done_ = nullptr;  // its copy
};

}  // namespace virtbay::virtiofs

#endif  // VIRTBAY_PLUGINS_VIRTIOFS_CALL_H_
