// Numbers of a FUSE server in a replay: those of the record become those that the server gives now.
#include "hostif/testkit/fuse_numbers.h"

#include <gtest/gtest.h>
#include <linux/fuse.h>

#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace virtbay::testing {
namespace {

using testkit::FuseNumbers;

template <typename T>
void Append(std::string* to, const T& value) {
  to->append(reinterpret_cast<const char*>(&value), sizeof(value));
}
template <typename T>
T Read(const std::string& from, size_t at) {
  T value{};
  std::array<char, sizeof(T)> bytes{};
  if (at < from.size()) from.copy(bytes.data(), bytes.size(), at);
  std::memcpy(&value, bytes.data(), bytes.size());
  return value;
}

constexpr size_t kArgs = sizeof(fuse_in_header);

std::string Request(uint32_t opcode, uint64_t node, std::string_view args = {}) {
  fuse_in_header header{};
  header.opcode = opcode;
  header.nodeid = node;
  std::string request;
  Append(&request, header);
  return request.append(args);
}
template <typename T>
std::string RequestOf(uint32_t opcode, uint64_t node, const T& args) {
  std::string bytes;
  Append(&bytes, args);
  return Request(opcode, node, bytes);
}
std::string Answer(std::string_view body, int error = 0) {
  fuse_out_header header{};
  header.error = error;
  header.len = static_cast<uint32_t>(sizeof(header) + body.size());
  std::string answer;
  Append(&answer, header);
  return answer.append(body);
}
std::string EntryOf(uint64_t node) {
  fuse_entry_out entry{};
  entry.nodeid = node;
  std::string body;
  Append(&body, entry);
  return body;
}
std::string OpenOf(uint64_t fh) {
  fuse_open_out open{};
  open.fh = fh;
  std::string body;
  Append(&body, open);
  return body;
}
struct Listed {
  std::string name;
  uint64_t node, next;
};
std::string Listing(const std::vector<Listed>& entries) {
  std::string body;
  for (const Listed& entry : entries) {
    body += EntryOf(entry.node);
    fuse_dirent head{};
    head.off = entry.next;
    head.namelen = static_cast<uint32_t>(entry.name.size());
    body.append(reinterpret_cast<const char*>(&head), FUSE_NAME_OFFSET);
    body += entry.name;
    body.resize(FUSE_DIRENT_ALIGN(body.size()));
  }
  return body;
}

class FuseNumbersTest : public ::testing::Test {
 protected:
  std::string Send(std::string request) {
    numbers_.Translate(1, ++id_, &request);
    return request;
  }
  void Told(const std::string& recorded, const std::string& now) {
    numbers_.Learn(1, id_, recorded, now);
  }
  uint64_t Node(uint64_t recorded) {
    return Read<fuse_in_header>(Send(Request(FUSE_READLINK, recorded)), 0).nodeid;
  }
  uint64_t Handle(uint64_t recorded) {
    fuse_read_in read{};
    read.fh = recorded;
    return Read<fuse_read_in>(Send(RequestOf(FUSE_READ, 1, read)), kArgs).fh;
  }
  FuseNumbers numbers_;
  uint64_t id_ = 0;
};

TEST_F(FuseNumbersTest, NodesAndHandlesAreThoseOfNow) {
  EXPECT_EQ(Node(1), 1u) << "the root is the root";
  Send(Request(FUSE_LOOKUP, 1));
  Told(Answer(EntryOf(20)), Answer(EntryOf(30)));
  Send(Request(FUSE_CREATE, 1));
  Told(Answer(EntryOf(21) + OpenOf(5)), Answer(EntryOf(31) + OpenOf(6)));
  Send(Request(FUSE_OPEN, 20));
  Told(Answer(OpenOf(6)), Answer(OpenOf(7)));
  EXPECT_EQ(Node(20), 30u);
  EXPECT_EQ(Node(21), 31u);
  EXPECT_EQ(Node(22), 22u) << "nothing is known of it";
  EXPECT_EQ(Handle(5), 6u);
  EXPECT_EQ(Handle(6), 7u);
  // A number that is used again stands for the newest.
  Send(Request(FUSE_OPEN, 20));
  Told(Answer(OpenOf(5)), Answer(OpenOf(9)));
  EXPECT_EQ(Handle(5), 9u);
  Send(Request(FUSE_OPEN, 20));
  Told(Answer(OpenOf(5), -ENOENT), Answer(OpenOf(1)));
  EXPECT_EQ(Handle(5), 9u) << "an error gives none";
  numbers_.Reset();
  EXPECT_EQ(Node(20), 20u);
}

TEST_F(FuseNumbersTest, EveryPlaceOfARequest) {
  Send(Request(FUSE_LOOKUP, 1));
  Told(Answer(EntryOf(20)), Answer(EntryOf(30)));
  Send(Request(FUSE_OPEN, 20));
  Told(Answer(OpenOf(5)), Answer(OpenOf(6)));

  const auto rename = Send(RequestOf(FUSE_RENAME2, 20, fuse_rename2_in{20, 0, 0}));
  EXPECT_EQ(Read<fuse_in_header>(rename, 0).nodeid, 30u);
  EXPECT_EQ(Read<fuse_rename2_in>(rename, kArgs).newdir, 30u);
  const auto link = Send(RequestOf(FUSE_LINK, 1, fuse_link_in{20}));
  EXPECT_EQ(Read<fuse_link_in>(link, kArgs).oldnodeid, 30u);
  fuse_copy_file_range_in copy{};
  copy.fh_in = copy.fh_out = 5;
  copy.nodeid_out = 20;
  const auto copied =
      Read<fuse_copy_file_range_in>(Send(RequestOf(FUSE_COPY_FILE_RANGE, 20, copy)), kArgs);
  EXPECT_EQ(copied.fh_in, 6u);
  EXPECT_EQ(copied.fh_out, 6u);
  EXPECT_EQ(copied.nodeid_out, 30u);
  fuse_setattr_in change{};
  change.fh = 5;
  EXPECT_EQ(Read<fuse_setattr_in>(Send(RequestOf(FUSE_SETATTR, 20, change)), kArgs).fh, 6u);

  std::string batch;
  Append(&batch, fuse_batch_forget_in{3, 0});
  for (const uint64_t node : {20u, 21u, 20u}) Append(&batch, fuse_forget_one{node, 1});
  const std::string forgotten = Send(Request(FUSE_BATCH_FORGET, 0, batch));
  const size_t at = kArgs + sizeof(fuse_batch_forget_in);
  EXPECT_EQ(Read<fuse_forget_one>(forgotten, at).nodeid, 30u);
  EXPECT_EQ(Read<fuse_forget_one>(forgotten, at + 16).nodeid, 21u);
  EXPECT_EQ(Read<fuse_forget_one>(forgotten, at + 32).nodeid, 30u);
  EXPECT_EQ(Read<fuse_forget_one>(forgotten, at + 32).nlookup, 1u);
}

// A copy lists in another order: by name, over several answers, and on from the same place.
TEST_F(FuseNumbersTest, ADirectoryThatListsInAnotherOrder) {
  fuse_read_in read{};
  read.fh = 5;
  Send(RequestOf(FUSE_READDIRPLUS, 1, read));
  Told(Answer(Listing({{"a", 20, 100}, {"b", 21, 200}})),
       Answer(Listing({{"c", 31, 7}, {"a", 32, 8}})));
  EXPECT_EQ(Node(20), 32u);
  EXPECT_EQ(Node(21), 21u) << "not listed yet";
  read.offset = 200;
  const auto on = Send(RequestOf(FUSE_READDIRPLUS, 1, read));
  EXPECT_EQ(Read<fuse_read_in>(on, kArgs).offset, 8u);
  Told(Answer(Listing({{"c", 22, 300}})), Answer(Listing({{"b", 33, 9}})));
  EXPECT_EQ(Node(21), 33u);
  EXPECT_EQ(Node(22), 31u);
  EXPECT_EQ(Node(0), 0u);
}

// What was recorded may be cut, and is hostile.
TEST_F(FuseNumbersTest, PartsOfRequestsAndAnswers) {
  fuse_read_in read{};
  read.fh = 5;
  const std::string request = RequestOf(FUSE_READDIRPLUS, 1, read);
  const std::string recorded = Answer(Listing({{"a", 20, 100}, {"b", 21, 200}}));
  const std::string now = Answer(Listing({{"a", 30, 100}, {"b", 31, 200}}));
  for (size_t size = 0; size <= recorded.size(); ++size) {
    Send(request);
    Told(recorded.substr(0, size), now);
    Send(request);
    Told(recorded, now.substr(0, size));
  }
  for (uint32_t opcode = 0; opcode < 64; ++opcode) {
    std::string whole = Request(opcode, 20, std::string(64, '\xff'));
    for (size_t size = 0; size <= whole.size(); ++size) {
      EXPECT_EQ(Send(whole.substr(0, size)).size(), size);
      Told(Answer(std::string(200, '\xff')), Answer(std::string(200, '\xff')));
    }
  }
  EXPECT_EQ(Node(21), 31u);
}

}  // namespace
}  // namespace virtbay::testing
