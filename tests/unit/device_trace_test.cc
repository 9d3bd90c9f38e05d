// DeviceHandle::StartTrace over a driver in this process, and what ChromeTrace makes of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hostif/trace/chrome_trace.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/device_fixture.h"
#include "virtbay/trace.h"

namespace virtbay::testing {
namespace {

using nlohmann::json;

// The events of a trace file after a check of what every viewer relies on.
class TraceFile {
 public:
  explicit TraceFile(const std::string& text) {
    whole_ = json::parse(text, nullptr, /*allow_exceptions=*/false);
    EXPECT_TRUE(whole_.is_object()) << text.substr(0, 200);
    if (!whole_.is_object()) return;
    for (const json& event : whole_["traceEvents"]) Add(event);
    for (const auto& [track, depth] : depth_) EXPECT_EQ(depth, 0) << "a call that does not end";
    EXPECT_TRUE(open_.empty()) << open_.size() << " spans do not end";
  }

  int Count(const std::string& name, const std::string& phase, int thread = 1, int process = 1) {
    return counts_[{process, thread, name, phase}];
  }
  const std::map<std::pair<int, int>, std::string>& names() const { return names_; }
  const std::vector<json>& events() const { return events_; }
  const json& whole() const { return whole_; }

 private:
  void Add(const json& event) {
    for (const char* key : {"ph", "name", "pid", "tid"}) {
      ASSERT_TRUE(event.contains(key)) << key << " in " << event;
    }
    const auto phase = event["ph"].get<std::string>();
    const auto name = event["name"].get<std::string>();
    const std::pair<int, int> track(event["pid"], event["tid"]);
    if (phase == "M") {
      names_[track] = event["args"]["name"];
      return;
    }
    ASSERT_TRUE(event["ts"].is_number()) << event;
    EXPECT_TRUE(names_.contains(track)) << event;
    EXPECT_GE(event["ts"].get<double>(), last_[track]) << event;
    last_[track] = event["ts"];
    if (phase == "B") {
      EXPECT_EQ(depth_[track]++, 0) << event;
    } else if (phase == "E") {
      EXPECT_EQ(--depth_[track], 0) << event;
    } else if (phase == "b") {
      EXPECT_TRUE(open_.emplace(event["cat"], event["id"], name).second) << event;
      EXPECT_TRUE(ids_.insert(event["id"]).second) << event;
    } else if (phase == "e") {
      EXPECT_EQ(open_.erase({event["cat"], event["id"], name}), 1u) << event;
    } else {
      EXPECT_EQ(phase, "i");
      EXPECT_EQ(event["s"], "t");
    }
    ++counts_[{track.first, track.second, name, phase}];
    events_.push_back(event);
  }

  json whole_;
  std::map<std::pair<int, int>, std::string> names_;
  std::map<std::pair<int, int>, double> last_;
  std::map<std::pair<int, int>, int> depth_;
  std::set<std::tuple<std::string, std::string, std::string>> open_;
  std::set<std::string> ids_;
  std::map<std::tuple<int, int, std::string, std::string>, int> counts_;
  std::vector<json> events_;
};

class TraceTest : public DeviceTest {
 protected:
  void Add(DeviceSpec spec) { ASSERT_OK_AND_ASSIGN(device_, host_->Add(std::move(spec))); }
  std::string Json(DeviceTrace* trace, const std::string& name = "a") {
    std::string out;
    trace::ChromeTrace chrome(&out);
    const std::vector<QueueTrace> queues = trace->Take();
    const uint32_t device = chrome.AddDevice(name, "op", static_cast<uint32_t>(queues.size()));
    chrome.Add(device, queues);
    chrome.Finish();
    return out;
  }
  QueueStats Stats(size_t queue = 0) { return host_->Inspect("a")->queues[queue]; }

  DeviceHandle device_;
};

TEST_F(TraceTest, EveryEventOfEveryRequestIsThere) {
  Add(Spec("a"));
  ASSERT_OK_AND_ASSIGN(const auto trace, device_.StartTrace());
  TempDir dir;
  const std::string path = dir / "file";
  const UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::write(file.get(), std::string(4096, 'x').data(), 4096), 4096);
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  for (int i = 0; i < 100; ++i) ASSERT_OK(client->Check());
  for (int i = 0; i < 7; ++i) {
    ASSERT_OK(client->Call({.op = Op::kSubmitRead, .fd = file.get(), .a = 8, .b = 4000}, "", 5000)
                  .status());
  }
  ASSERT_OK(client->Call({.op = Op::kTimer, .offset = 1000}).status());
  client.reset();  // its thread has ended: nothing is missing

  TraceFile seen(Json(trace.get()));
  const QueueStats stats = Stats();
  EXPECT_EQ(stats.requests, 108u);
  EXPECT_EQ(seen.Count("request", "b"), 108);
  EXPECT_EQ(seen.Count("request", "e"), 108);
  EXPECT_EQ(seen.Count("complete", "i"), 108);
  EXPECT_EQ(seen.Count("read", "b"), 7);
  EXPECT_EQ(seen.Count("read", "e"), 7);
  EXPECT_EQ(seen.Count("on_io", "B"), 7);
  EXPECT_EQ(seen.Count("on_timer", "B"), 1);
  EXPECT_EQ(seen.Count("on_requests", "B"), static_cast<int>(stats.batches));
  EXPECT_EQ(seen.Count("on_requests", "E"), static_cast<int>(stats.batches));
  EXPECT_EQ(seen.Count("pop", "i"), static_cast<int>(stats.batches));
  EXPECT_EQ(seen.Count("kick", "i"), static_cast<int>(stats.kicks));
  EXPECT_EQ(seen.Count("notify", "i"), static_cast<int>(stats.calls));
  EXPECT_EQ(seen.whole()["otherData"]["dropped"], 0);

  int popped = 0;
  int of_requests = 0;
  std::set<uint64_t> requests;
  for (const json& event : seen.events()) {
    const json& args = event.value("args", json::object());
    if (event["name"] == "pop") popped += args["requests"].get<int>();
    if (event["name"] == "request" && event["ph"] == "b") {
      requests.insert(args["request"].get<uint64_t>());
      EXPECT_GE(args["readable"], sizeof(Command));
    }
    if (event["name"] == "complete") {
      EXPECT_TRUE(requests.contains(args["request"])) << event;
    }
    if (event["name"] == "read" && event["ph"] == "b") {
      of_requests += static_cast<int>(requests.count(args["request"]));
    }
    if (event["name"] == "read" && event["ph"] == "e") {
      EXPECT_EQ(args["result"], 4000);
    }
  }
  EXPECT_EQ(popped, 108);
  EXPECT_EQ(requests.size(), 108u);
  EXPECT_EQ(of_requests, 7);
}

TEST_F(TraceTest, EachQueueIsATrack) {
  Add(ParallelSpec("a", {{"queues", "2"}}));
  ASSERT_OK_AND_ASSIGN(const auto trace, device_.StartTrace());
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  for (int i = 0; i < 5; ++i) ASSERT_OK(client->Check(0));
  for (int i = 0; i < 9; ++i) ASSERT_OK(client->Check(1));
  client.reset();
  const std::string name = "odd \"name\"\\\n\x01\xff";
  TraceFile seen(Json(trace.get(), name));
  EXPECT_EQ(seen.Count("complete", "i", 1), 5);
  EXPECT_EQ(seen.Count("complete", "i", 2), 9);
  EXPECT_EQ(seen.names().at({1, 1}), "queue 0");
  EXPECT_EQ(seen.names().at({1, 2}), "queue 1");
  EXPECT_EQ(seen.names().at({1, 0}), "odd \"name\"\\\n\x01\xEF\xBF\xBD (op)");
}

TEST_F(TraceTest, ARunningDeviceIsTracedAndLeftAlone) {
  Add(Spec("a"));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  ASSERT_OK(client->Check());
  // Taken before the trace: it has no span, but its end is there.
  const uint64_t held = client->Send({.op = Op::kHold});
  ASSERT_OK(client->Check());
  ASSERT_OK_AND_ASSIGN(auto trace, device_.StartTrace());
  EXPECT_THAT(device_.StartTrace(), StatusIs(absl::StatusCode::kAlreadyExists));
  std::vector<QueueTrace> queues;
  do {
    ASSERT_OK(client->Check());
    queues = trace->Take();
  } while (queues[0].events.empty());
  ASSERT_OK(client->Call({.op = Op::kRelease}).status());
  ASSERT_OK(client->Take(held).status());
  queues = trace->Take();
  uint32_t unknown = 0;
  for (const TraceEvent& event : queues[0].events) {
    unknown += event.kind == TraceKind::kComplete && event.id == 0 ? 1 : 0;
  }
  EXPECT_EQ(unknown, 1u);

  trace->Stop();
  // Tasks of a thread come in turn, so that after a stop and a start the queue has heard of it.
  ASSERT_OK(device_.Stop());
  EXPECT_OK(device_.Start());
  trace->Take();
  ASSERT_OK_AND_ASSIGN(const auto second, device_.StartTrace());
  trace.reset();
  EXPECT_THAT(device_.StartTrace(), StatusIs(absl::StatusCode::kAlreadyExists));
  client.reset();
  ASSERT_OK_AND_ASSIGN(client, Client::Create(device_));
  ASSERT_OK(client->Check());
  client.reset();
  TraceFile seen(Json(second.get()));
  EXPECT_EQ(seen.Count("request", "b"), 1);
}

TEST_F(TraceTest, WhatDoesNotFitIsCountedAndTheFileStaysWhole) {
  Add(Spec("a"));
  EXPECT_THAT(device_.StartTrace(0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(device_.StartTrace(UINT32_MAX), StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_OK_AND_ASSIGN(const auto trace, device_.StartTrace(16));
  ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
  std::string out;
  trace::ChromeTrace chrome(&out);
  ASSERT_EQ(chrome.AddDevice("a", "op", static_cast<uint32_t>(trace->Take().size())), 0u);
  for (int i = 0; i < 300; ++i) {
    ASSERT_OK(client->Check());
    if (i % 9 == 0) chrome.Add(0, trace->Take());
  }
  client.reset();
  chrome.Add(0, trace->Take());
  chrome.Finish();
  TraceFile seen(out);
  EXPECT_GT(chrome.dropped(), 300u);
  EXPECT_GT(chrome.events(), 300u);
  EXPECT_EQ(seen.whole()["otherData"]["dropped"], chrome.dropped());
  EXPECT_GT(seen.Count("events dropped", "i"), 1);
}

TEST_F(TraceTest, ATraceOutlivesItsDevice) {
  Add(Spec("a"));
  ASSERT_OK_AND_ASSIGN(const auto trace, device_.StartTrace());
  {
    ASSERT_OK_AND_ASSIGN(auto client, Client::Create(device_));
    ASSERT_OK(client->Check());
  }
  ASSERT_OK(host_->Remove("a"));
  EXPECT_THAT(device_.StartTrace(), ::testing::Not(StatusIs(absl::StatusCode::kOk)));
  TraceFile seen(Json(trace.get()));
  EXPECT_EQ(seen.Count("request", "e"), 1);
  EXPECT_TRUE(trace->Take()[0].events.empty());
}

}  // namespace
}  // namespace virtbay::testing
