#include "plugins/virtiofs/call.h"

#include <cerrno>

#include "plugins/virtiofs/path.h"

namespace virtbay::virtiofs {
namespace {

// Largest request whose arguments are looked at as a whole: a setxattr value with its name.
constexpr uint32_t kMaxWhole = kInHeader + 4096 + kXattrSizeMax;

}  // namespace

bool Call::Begin() {
  const bool whole = request_.Read(0, &header_);
  if (whole && header_.len >= kInHeader && header_.len <= request_.in_total()) return true;
  sdk::Host::Add(fs.counters.malformed);
  if (!whole || request_.out_total() < kOutHeader) {
    // No unique to answer to, or no room to answer in.
    request_.Fail();
    return false;
  }
  Error(EINVAL);
  return false;
}

int Call::Whole(std::span<const std::byte>* whole) {
  if (header_.len <= request_.in().size()) {
    *whole = request_.in().first(header_.len);
    return 0;
  }
  if (header_.len > kMaxWhole) return E2BIG;
  *whole = request_.Fetch(0, header_.len);
  return whole->empty() ? ENOMEM : 0;
}

int Call::Tail(uint32_t fixed, std::span<const std::byte>* tail) {
  const uint32_t ext = static_cast<uint32_t>(header_.total_extlen) * 8;
  if (fixed > arg_bytes() || ext > arg_bytes() - fixed) return EINVAL;
  std::span<const std::byte> whole;
  if (const int error = Whole(&whole); error != 0) return error;
  *tail = whole.subspan(kInHeader + fixed, arg_bytes() - fixed - ext);
  // Linux puts the extensions right behind the last NUL; a driver that aligns them is as good.
  for (int pad = 0; ext != 0 && pad < 7 && tail->size() >= 2; ++pad) {
    if (tail->back() != std::byte{0} || (*tail)[tail->size() - 2] != std::byte{0}) break;
    *tail = tail->first(tail->size() - 1);
  }
  return 0;
}

int Call::Name(uint32_t fixed, std::string_view* name) {
  // A name fits the view; more than that is too long without a look.
  if (arg_bytes() > 64 * 1024) return ENAMETOOLONG;
  std::span<const std::byte> tail;
  if (const int error = Tail(fixed, &tail); error != 0) return error;
  return CheckName(tail, name);
}

int Call::TwoTexts(uint32_t fixed, bool second_is_name, std::string_view* first,
                   std::string_view* second) {
  if (arg_bytes() > 64 * 1024) return ENAMETOOLONG;
  std::span<const std::byte> tail;
  if (const int error = Tail(fixed, &tail); error != 0) return error;
  const void* end = tail.empty() ? nullptr : std::memchr(tail.data(), 0, tail.size());
  if (end == nullptr) return EINVAL;
  const size_t length = static_cast<size_t>(static_cast<const std::byte*>(end) - tail.data()) + 1;
  if (const int error = CheckName(tail.first(length), first); error != 0) return error;
  const std::span<const std::byte> rest = tail.subspan(length);
  if (second_is_name) return CheckName(rest, second);
  const void* stop = rest.empty() ? nullptr : std::memchr(rest.data(), 0, rest.size());
  if (stop == nullptr || static_cast<const std::byte*>(stop) != &rest.back()) return EINVAL;
  *second = {reinterpret_cast<const char*>(rest.data()), rest.size() - 1};
  return 0;
}

int Call::Groups(std::array<uint32_t, kMaxGroups>* groups, size_t* count) {
  *count = 0;
  uint32_t left = static_cast<uint32_t>(header_.total_extlen) * 8;
  if (left == 0 || !fs.has(kInitCreateSuppGroup)) return 0;
  if (left > arg_bytes()) return EINVAL;
  std::span<const std::byte> whole;
  if (const int error = Whole(&whole); error != 0) return error;
  std::span<const std::byte> ext = whole.last(left);
  while (ext.size() >= sizeof(fuse_ext_header)) {
    fuse_ext_header head;
    std::memcpy(&head, ext.data(), sizeof(head));
    if (head.size < sizeof(head) || head.size > ext.size()) return EINVAL;
    if (head.type == kExtGroups) {
      SuppGroups list = {};
      const std::span<const std::byte> body = ext.subspan(sizeof(head), head.size - sizeof(head));
      if (body.size() < sizeof(list)) return EINVAL;
      std::memcpy(&list, body.data(), sizeof(list));
      if (list.nr_groups > kMaxGroups ||
          (body.size() - sizeof(list)) / sizeof(uint32_t) < list.nr_groups) {
        return EINVAL;
      }
      std::memcpy(groups->data(), body.data() + sizeof(list), list.nr_groups * sizeof(uint32_t));
      *count = list.nr_groups;
    }
    const size_t step = (static_cast<size_t>(head.size) + 7) & ~size_t{7};
    ext = ext.subspan(std::min(step, ext.size()));
  }
  return 0;
}

InodeRef Call::Target() {
  InodeRef inode = fs.inodes.Find(header_.nodeid);
  if (!inode) Error(ESTALE);
  return inode;
}

std::byte* Call::Body(uint32_t n) {
  if (request_.out().size() < kOutHeader + static_cast<size_t>(n) &&
      !request_.Reserve(kOutHeader + n)) {
    return nullptr;
  }
  return request_.out().data() + kOutHeader;
}

void Call::Error(int error) {
  if (no_reply_) {
    request_.Complete(0);
    return;
  }
  Answer(fs, std::move(request_), header_.unique, error, {});
}

void Call::Finish(uint32_t n) {
  if (no_reply_) {
    request_.Complete(0);
    return;
  }
  if (journal_ != nullptr) {
    NoteAnswer(fs, request_, header_.unique, 0,
               n == 0 ? std::span<const std::byte>()
                      : std::span<const std::byte>(request_.out()).subspan(kOutHeader, n));
  }
  const fuse_out_header out = {kOutHeader + n, 0, header_.unique};
  request_.Write(0, out);
  request_.Complete(kOutHeader + n);
}

void Call::Answer(Fs& fs, sdk::Request request, uint64_t unique, int error,
                  std::span<const std::byte> body) {
  if (error != 0) sdk::Host::Add(fs.counters.errors);
  const uint32_t n = error == 0 ? static_cast<uint32_t>(body.size()) : 0;
  const fuse_out_header out = {kOutHeader + n, -error, unique};
  if (!request.Write(0, out) || request.out().size() - kOutHeader < n) {
    request.Fail();
    return;
  }
  if (n != 0) std::memcpy(request.out().data() + kOutHeader, body.data(), n);
  if (fs.keep != nullptr) NoteAnswer(fs, request, unique, error, body.first(n));
  request.Complete(kOutHeader + n);
}

void Call::AnswerData(sdk::Request request, uint64_t unique, uint32_t moved) {
  const fuse_out_header out = {kOutHeader + moved, 0, unique};
  if (!request.Write(0, out)) {
    request.Fail();
    return;
  }
  request.Complete(kOutHeader, kOutHeader + moved);
}

}  // namespace virtbay::virtiofs
