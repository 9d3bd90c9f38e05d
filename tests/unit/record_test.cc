// DeviceHandle::StartRecord over a driver in this process, the file that it becomes, and its
// replay.
#include "virtbay/record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "hostif/device_host/record_source.h"
#include "hostif/device_host/recorder.h"
#include "hostif/device_host/trace_source.h"
#include "hostif/record/record_file.h"
#include "tests/support/log_capture.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"
#include "virtbay/testkit/replay.h"

namespace virtbay::testing {
namespace {

using device_host::Recorder;
using device_host::RecordSource;
using device_host::TraceSource;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testkit::ReplayReport;

std::vector<RequestRecord> Of(const std::vector<RequestRecord>& records, RecordKind kind) {
  std::vector<RequestRecord> some;
  for (const RequestRecord& record : records) {
    if (record.kind == kind) some.push_back(record);
  }
  return some;
}

class RecordTest : public DeviceTest {
 protected:
  void Add(DeviceSpec spec) { ASSERT_OK_AND_ASSIGN(device_, host_->Add(std::move(spec))); }

  DeviceHandle device_;
};

TEST_F(RecordTest, RequestsAnswersAndTheEndAreThere) {
  Add(Spec("a"));
  ASSERT_OK_AND_ASSIGN(const auto record, device_.StartRecord({.bytes = 40}));
  EXPECT_THAT(device_.StartRecord({}), StatusIs(absl::StatusCode::kAlreadyExists));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  ASSERT_OK(client->Call({.op = Op::kEcho}, "ping", 64).status());
  ASSERT_OK(client->Call({.op = Op::kEcho}, std::string(1000, 'x'), 1500).status());
  ASSERT_OK(client->Call({.op = Op::kNothing}, "", 0).status());
  const uint64_t held = client->Send({.op = Op::kHold});
  ASSERT_OK(client->Call({.op = Op::kRelease}).status());
  ASSERT_OK(client->Take(held).status());
  client.reset();  // its thread has ended: nothing is missing

  std::vector<RequestRecord> records;
  record->Take(&records);
  EXPECT_EQ(record->dropped(), 0u);
  const auto requests = Of(records, RecordKind::kRequest);
  const auto answers = Of(records, RecordKind::kComplete);
  ASSERT_EQ(requests.size(), 5u);
  ASSERT_EQ(answers.size(), 5u);
  EXPECT_THAT(requests[0].readable, ElementsAre(28u));
  EXPECT_THAT(requests[0].writable, ElementsAre(64u));
  EXPECT_EQ(requests[0].bytes.substr(sizeof(Command)), "ping");
  EXPECT_THAT(requests[1].readable, ElementsAre(1024u));
  EXPECT_EQ(requests[1].bytes.size(), 40u);
  EXPECT_TRUE(requests[2].writable.empty());
  EXPECT_EQ(answers[0].id, requests[0].id);
  EXPECT_EQ(answers[0].written, kResultSize + 4);
  EXPECT_EQ(answers[0].bytes.substr(kResultSize), "ping");
  EXPECT_EQ(answers[1].written, kResultSize + 1000);
  EXPECT_EQ(answers[1].bytes.size(), 40u);
  EXPECT_EQ(answers[2].written, 0u);
  // What was held ended after what came later, or just before it.
  EXPECT_EQ(answers[3].id + answers[4].id, requests[3].id + requests[4].id);
  EXPECT_EQ(records.back().kind, RecordKind::kReset);
  for (size_t i = 1; i < records.size(); ++i) EXPECT_GE(records[i].ns, records[i - 1].ns);
}

TEST_F(RecordTest, ARunningDeviceIsRecordedAndLeftAlone) {
  Add(Spec("a"));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  const uint64_t held = client->Send({.op = Op::kHold});
  ASSERT_OK(client->Check());
  ASSERT_OK_AND_ASSIGN(auto record, device_.StartRecord({}));
  std::vector<RequestRecord> records;
  do {
    ASSERT_OK(client->Check());
    record->Take(&records);
  } while (records.empty());
  ASSERT_OK(client->Call({.op = Op::kRelease}).status());
  ASSERT_OK(client->Take(held).status());
  record->Take(&records);
  int unknown = 0;
  for (const RequestRecord& one : Of(records, RecordKind::kComplete)) unknown += one.id == 0;
  EXPECT_EQ(unknown, 1) << "the one that was taken before";
  record.reset();
  // Tasks of a thread come in turn, so that after a stop and a start the queue has heard of it.
  ASSERT_OK(device_.Stop());
  EXPECT_OK(device_.Start());
  client.reset();
  ASSERT_OK_AND_ASSIGN(record, device_.StartRecord({}));
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(device_.StartRecord({}), ::testing::Not(StatusIs(absl::StatusCode::kOk)));
  records.clear();
  record->Take(&records);
  EXPECT_TRUE(Of(records, RecordKind::kRequest).empty());
}

TEST_F(RecordTest, WhatDoesNotFitIsCountedAndTheRestIsWhole) {
  Add(Spec("a"));
  EXPECT_THAT(device_.StartRecord({.room = 0}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(device_.StartRecord({.room = ~uint64_t{0}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_OK_AND_ASSIGN(const auto record, device_.StartRecord({.bytes = 500, .room = 4096}));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  std::vector<RequestRecord> records;
  // Lengths that meet the end of the ring at every place of a record.
  for (uint32_t i = 0; i < 2000; ++i) {
    const std::string text(i % 211, static_cast<char>('a' + i % 26));
    ASSERT_OK(client->Call({.op = Op::kEcho, .a = i}, text, 300).status());
    record->Take(&records);
  }
  EXPECT_EQ(record->dropped(), 0u);
  const auto requests = Of(records, RecordKind::kRequest);
  const auto answers = Of(records, RecordKind::kComplete);
  ASSERT_EQ(requests.size(), 2000u);
  // The last answer may come to the ring after the driver has seen it, but not later than the end.
  ASSERT_GE(answers.size(), 1999u);
  for (uint32_t i = 0; i < 1999; ++i) {
    const std::string text(i % 211, static_cast<char>('a' + i % 26));
    Command command;
    ASSERT_EQ(requests[i].bytes.size(), sizeof(command) + text.size());
    std::memcpy(&command, requests[i].bytes.data(), sizeof(command));
    ASSERT_EQ(command.a, i);
    ASSERT_EQ(requests[i].bytes.substr(sizeof(command)), text);
    ASSERT_EQ(answers[i].bytes.substr(kResultSize), text);
  }
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  client.reset();
  EXPECT_GT(record->dropped(), 0u);
  const uint64_t before = record->dropped();
  records.clear();
  record->Take(&records);
  EXPECT_GT(records.size(), 20u);
  EXPECT_EQ(record->dropped(), before);
}

record::RecordHead Head() {
  return {.device = "a",
          .type = "op",
          .virtio_id = 42,
          .plugin = "op",
          .plugin_version = "1",
          .plugin_build = "x",
          .options = {{"odd \"key\"", "odd\nvalue\xff"}},
          .features = uint64_t{1} << 63 | 3,
          .queues = 2,
          .bytes = 100,
          .whole = true};
}

RequestRecord Request(uint64_t id, std::string bytes, uint32_t room, uint32_t queue = 0) {
  RequestRecord record;
  record.ns = id * 10;
  record.id = id;
  record.queue = queue;
  if (!bytes.empty()) record.readable.push_back(static_cast<uint32_t>(bytes.size()));
  if (room != 0) record.writable.push_back(room);
  record.bytes = std::move(bytes);
  return record;
}

RequestRecord Answer(uint64_t id, uint32_t written, std::string bytes, uint32_t queue = 0) {
  RequestRecord record;
  record.ns = id * 10 + 1;
  record.id = id;
  record.queue = queue;
  record.written = written;
  record.kind = RecordKind::kComplete;
  record.bytes = std::move(bytes);
  return record;
}

std::string Whole(const std::vector<RequestRecord>& records) {
  std::string bytes;
  record::AppendHead(Head(), &bytes);
  for (const RequestRecord& record : records) record::AppendRecord(record, &bytes);
  return bytes;
}

TEST(RecordFileTest, IsReadAsItWasWritten) {
  RequestRecord chain = Request(7, "abcdef", 0, 1);
  chain.readable = {1, 2, 3, 90};
  chain.writable = {4, 0, 5};
  ASSERT_OK_AND_ASSIGN(const record::RecordFile file,
                       record::Parse(Whole({chain, Answer(3, 9, "123456789")})));
  EXPECT_FALSE(file.cut);
  EXPECT_EQ(file.head.type, "op");
  EXPECT_EQ(file.head.features, uint64_t{1} << 63 | 3);
  EXPECT_EQ(file.head.options.begin()->first, "odd \"key\"");
  EXPECT_TRUE(file.head.whole);
  ASSERT_EQ(file.records.size(), 2u);
  EXPECT_EQ(file.records[0].id, 3u) << "by time";
  EXPECT_EQ(file.records[0].bytes, "123456789");
  EXPECT_EQ(file.records[1].readable, chain.readable);
  EXPECT_EQ(file.records[1].writable, chain.writable);
  EXPECT_EQ(file.records[1].bytes, "abcdef");
  EXPECT_EQ(file.records[1].queue, 1u);
}

TEST(RecordFileTest, WhatIsCutOffOrDamagedIsSaid) {
  const std::string head = Whole({});
  const std::string first = Whole({Request(1, "abc", 20)});
  const std::string bytes = Whole({Request(1, "abc", 20), Answer(1, 4, "wxyz")});
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto file = record::Parse(absl::string_view(bytes).substr(0, size));
    if (size < head.size()) {
      EXPECT_THAT(file, StatusIs(absl::StatusCode::kDataLoss)) << size;
    } else {
      ASSERT_OK(file.status()) << size;
      EXPECT_EQ(file->cut, size != head.size() && size != first.size()) << size;
    }
  }
  std::minstd_rand random(1);
  for (size_t at = 0; at < bytes.size(); ++at) {
    for (int i = 0; i < 8; ++i) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(random());
      const auto file = record::Parse(damaged);
      if (file.ok()) continue;
      EXPECT_THAT(file, StatusIs(absl::StatusCode::kDataLoss, "at byte "));
    }
  }
  // More than any record has, though the file ends before it.
  std::string large = bytes;
  large.replace(head.size(), 4, "\xf0\xff\xff\xff");
  EXPECT_THAT(record::Parse(large),
              StatusIs(absl::StatusCode::kDataLoss, absl::StrCat("at byte ", head.size(), ": ")));
  // Sizes that are not those of the record.
  RequestRecord lies = Request(1, "abc", 20);
  lies.bytes = "abcd";
  EXPECT_THAT(record::Parse(Whole({lies})), StatusIs(absl::StatusCode::kDataLoss));
  lies.readable = {0xffffffff, 0xffffffff};
  EXPECT_THAT(record::Parse(Whole({lies})), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(record::Parse(Whole({Answer(1, 3, "abcd")})), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(record::Read("/dev/null"), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(record::Read("/nowhere"), StatusIs(absl::StatusCode::kNotFound));
}

class ReplayTest : public RecordTest {
 protected:
  std::string Write(const std::vector<RequestRecord>& records) {
    const std::string path = dir_ / "record";
    std::ofstream(path, std::ios::binary) << Whole(records);
    return path;
  }
  sdk::Result<ReplayReport> Replay(const std::string& path, const char* plugin = VIRTBAY_OP_PLUGIN,
                                   const std::string& type = "") {
    testkit::ReplayOptions options;
    options.record = path;
    options.bay.plugin = plugin;
    options.bay.type = type;
    options.bay.packed = kPackedRings;
    options.patience = 5;
    options.progress = [this](std::string_view what) { last_ = what; };
    return testkit::Replay(options);
  }
  static std::string Bytes(const Command& command, const std::string& payload = "") {
    return std::string(reinterpret_cast<const char*>(&command), sizeof(command)) + payload;
  }
  static std::string Result(int64_t result, const std::string& data = "") {
    return std::string(reinterpret_cast<const char*>(&result), sizeof(result)) + data;
  }

  TempDir dir_;
  std::string last_;
};

TEST_F(ReplayTest, GivesThePluginAgainWhatItWasGiven) {
  Add(ParallelSpec("a", {{"queues", "2"}}));
  const std::string path = dir_ / "record";
  ASSERT_OK_AND_ASSIGN(auto source, RecordSource::Start(device_, /*payload=*/true));
  ASSERT_OK_AND_ASSIGN(const auto recorder,
                       Recorder::Start(path, absl::InfiniteDuration(), std::move(source)));
  for (int session = 0; session < 2; ++session) {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
    for (uint32_t i = 0; i < 200; ++i) {
      ASSERT_OK(
          client->Call({.op = Op::kEcho}, std::string(size_t{i} * 7, 'x'), 2000, i % 2).status());
    }
    const uint64_t held = client->Send({.op = Op::kHold});
    ASSERT_OK(client->Check());
    ASSERT_OK(client->Call({.op = Op::kRelease}).status());
    ASSERT_OK(client->Take(held).status());
    client->Send({.op = Op::kHold});  // ends with the queue
    ASSERT_OK(client->Check());
  }
  ASSERT_OK_AND_ASSIGN(const auto written, recorder->Stop());
  EXPECT_EQ(written.dropped, 0u);
  EXPECT_GT(written.events, 2u * 2 * 203);

  auto report = Replay(path, VIRTBAY_OP_PARALLEL_PLUGIN);
  ASSERT_TRUE(report.ok()) << report.error().text;
  // The options are not those of the record, and there is one queue then.
  EXPECT_EQ(report->left_out, 2u * 100);
  testkit::ReplayOptions options;
  options.record = path;
  options.bay.plugin = VIRTBAY_OP_PARALLEL_PLUGIN;
  options.recorded_options = true;
  report = testkit::Replay(options);
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_EQ(report->failure, "");
  EXPECT_TRUE(report->whole);
  EXPECT_FALSE(report->cut);
  EXPECT_EQ(report->left_out, 0u);
  EXPECT_EQ(report->requests, 2u * 205);
  EXPECT_EQ(report->answered, 2u * 205) << "those ended by the stop as well";
  EXPECT_EQ(report->unanswered, 0u);
  EXPECT_EQ(report->lengths + report->contents, 0u)
      << report->differences[0].request << ": " << report->differences[0].what;
}

TEST_F(ReplayTest, AFileThatTakesNoMoreIsLoggedAtOnce) {
  Add(ParallelSpec("a"));
  LogCapture log;
  ASSERT_OK_AND_ASSIGN(auto source, RecordSource::Start(device_, /*payload=*/true));
  ASSERT_OK_AND_ASSIGN(
      const auto recorder,
      Recorder::Start(dir_ / "record", absl::InfiniteDuration(), std::move(source), log.log()));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 1000;
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_OK(client->Call({.op = Op::kEcho}, std::string(4000, 'x'), 5000).status());
  EXPECT_TRUE(log.WaitFor("File too large: the recording ends after 1000 bytes"));
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_FALSE(recorder->Stop().ok());
}

TEST_F(ReplayTest, AFileIsOneRecordingsOnly) {
  Add(ParallelSpec("a"));
  const std::string path = dir_ / "record";
  {
    ASSERT_OK_AND_ASSIGN(auto source, RecordSource::Start(device_, /*payload=*/false));
    ASSERT_OK_AND_ASSIGN(const auto first,
                         Recorder::Start(path, absl::InfiniteDuration(), std::move(source)));
    ASSERT_OK_AND_ASSIGN(auto events, device_.StartTrace(64));
    auto trace = std::make_unique<TraceSource>();
    trace->Add("a", "test", std::move(events));
    EXPECT_THAT(Recorder::Start(path, absl::InfiniteDuration(), std::move(trace)).status(),
                StatusIs(absl::StatusCode::kAlreadyExists, "another trace or record"));
    ASSERT_OK(first->Stop().status());
  }
  auto report = Replay(path, VIRTBAY_OP_PARALLEL_PLUGIN);
  EXPECT_TRUE(report.ok()) << report.error().text;
  // It is free again, and overwritten.
  ASSERT_OK_AND_ASSIGN(const auto next, Recorder::Start(path, absl::InfiniteDuration(),
                                                        std::make_unique<TraceSource>()));
  ASSERT_OK(next->Stop().status());
}

TEST_F(ReplayTest, SaysWhatIsDifferent) {
  auto report = Replay(Write({Request(1, Bytes({}, "ping"), 64), Answer(1, 12, Result(4, "ping")),
                              Request(2, Bytes({}, "ping"), 64), Answer(2, 12, "????????pong"),
                              Request(3, Bytes({}, "ping"), 64), Answer(3, 13, ""),
                              Request(4, Bytes({.op = Op::kHold}), 64), Answer(4, 8, ""),
                              Request(5, Bytes({}, "ping"), 64),  // was not answered then
                              Answer(99, 5, "")}));               // of before
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_EQ(report->requests, 5u);
  EXPECT_EQ(report->answered, 3u);
  EXPECT_EQ(report->lengths, 1u);
  EXPECT_EQ(report->contents, 1u);
  EXPECT_EQ(report->unanswered, 1u);
  EXPECT_EQ(report->unfilled, 0u);
  ASSERT_EQ(report->differences.size(), 3u);
  EXPECT_EQ(report->differences[0].request, 2u);
  EXPECT_THAT(report->differences[0].what, HasSubstr("byte 0 of 12"));
  EXPECT_EQ(report->differences[1].what, "12 bytes written, not 13");
  EXPECT_EQ(report->differences[2].what, "no answer within 5 s");
  EXPECT_EQ(last_, "request 5 of queue 0");
}

TEST_F(ReplayTest, ADeviceThatFailsIsToldOf) {
  auto report = Replay(Write({Request(1, Bytes({.op = Op::kFail}), 64), Answer(1, 8, ""),
                              Request(2, Bytes({}, "ping"), 64), Answer(2, 12, "")}));
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_NE(report->failure, "");
}

TEST_F(ReplayTest, WhatWasNeverAnsweredIsWaitedFor) {
  RequestRecord end;
  end.ns = 100;
  for (const RecordKind kind : {RecordKind::kComplete, RecordKind::kStop, RecordKind::kReset}) {
    std::vector<RequestRecord> records = {Request(1, Bytes({}, "ping"), 64),
                                          Answer(1, 12, Result(4, "ping")),
                                          Request(2, Bytes({.op = Op::kFail}), 64)};
    end.kind = kind;
    if (kind != RecordKind::kComplete) records.push_back(end);
    for (int i = 0; i < 10; ++i) {
      auto report = Replay(Write(records));
      ASSERT_TRUE(report.ok()) << report.error().text;
      EXPECT_EQ(report->requests, 2u);
      EXPECT_NE(report->failure, "") << "with a record of kind " << static_cast<int>(kind);
    }
  }
}

TEST_F(ReplayTest, WhatIsHeldAtTheEndIsNoFailure) {
  auto report = Replay(
      Write({Request(1, Bytes({.op = Op::kHold}), 64), Request(2, Bytes({.op = Op::kPark}), 64)}));
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_EQ(report->failure, "");
  EXPECT_EQ(report->unanswered, 0u);
}

TEST_F(ReplayTest, WhatHasNoRoomIsLeftOut) {
  RequestRecord huge = Request(1, "x", 64);
  huge.readable = {0x7fffffff};
  RequestRecord many = Request(2, "x", 0);
  many.readable.assign(65536, 1);
  RequestRecord room = Request(3, "x", 0x7fffffff);
  RequestRecord far = Request(4, "x", 64, 77);
  auto report = Replay(Write({huge, many, room, far, Answer(1, 8, ""), Answer(4, 8, "", 77),
                              Request(5, Bytes({}, "ping"), 64), Answer(5, 12, "")}));
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_EQ(report->left_out, 4u);
  EXPECT_EQ(report->no_queue, 1u);
  EXPECT_EQ(report->answered, 1u);
}

TEST_F(ReplayTest, ABufferThatTheWorldFilledIsNotWaitedForTwice) {
  std::vector<RequestRecord> records;
  for (uint64_t id = 1; id <= 100; ++id) {
    records.push_back(Request(id, "", 64));
    records.push_back(Answer(id, 5, "hello"));
  }
  auto report = Replay(Write(records), VIRTBAY_CONSOLE_PLUGIN, "virtio-console");
  ASSERT_TRUE(report.ok()) << report.error().text;
  EXPECT_EQ(report->unfilled, 100u);
  EXPECT_EQ(report->unanswered, 100u);
  EXPECT_TRUE(report->differences.empty());
}

TEST_F(ReplayTest, NeedsARecordAndItsPlugin) {
  EXPECT_THAT(Replay(dir_ / "none").error().text, HasSubstr("No such file"));
  EXPECT_THAT(Replay(Write({}), "/nowhere.so").error().text, HasSubstr("/nowhere.so"));
  EXPECT_FALSE(Replay(Write({}), VIRTBAY_CONSOLE_PLUGIN, "op").ok());
}

}  // namespace
}  // namespace virtbay::testing
