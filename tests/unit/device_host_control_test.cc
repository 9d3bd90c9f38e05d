// The control protocol and its socket against a service that is only a table: right answers, and
// no harm from hostile lines, floods, slow and vanishing clients.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "hostif/device_host/control_client.h"
#include "hostif/device_host/control_protocol.h"
#include "hostif/device_host/control_server.h"
#include "hostif/device_host/unix_socket.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class FakeTarget final : public ControlTarget {
 public:
  absl::Status AddDevice(DeviceConfig config) override {
    if (config.spec.name == "slow") {
      slow_started.Notify();
      slow_release.WaitForNotification();
    }
    absl::MutexLock lock(&mutex_);
    DeviceReport report;
    report.info.name = config.spec.name;
    report.info.plugin = config.spec.plugin;
    report.info.options = config.spec.options;
    report.info.arena_size = config.spec.arena_size;
    report.info.state = "ready";
    report.info.queues.resize(2);
    report.info.queues[0].requests = 3;
    report.info.queues[1].requests = 4;
    report.info.queues[1].ring_size = 128;
    report.info.queues[1].ring_avail = 0x5c00'0800;
    report.info.queues[0].slot_wait_ns = 5;
    report.info.queues[1].slot_wait_ns = 6;
    report.socket = config.socket_path;
    if (!devices_.emplace(config.spec.name, report).second) {
      return absl::AlreadyExistsError("device " + config.spec.name + ": already exists");
    }
    return absl::OkStatus();
  }
  absl::Status RemoveDevice(absl::string_view name) override {
    absl::MutexLock lock(&mutex_);
    if (devices_.erase(std::string(name)) == 0) return absl::NotFoundError("no such device");
    return absl::OkStatus();
  }
  absl::StatusOr<shares::AddedShare> AddShare(absl::string_view device,
                                              const shares::ShareSpec& share) override {
    absl::MutexLock lock(&mutex_);
    if (!devices_.contains(std::string(device))) return absl::NotFoundError("no such device");
    shares_.push_back(share);
    return shares::AddedShare{share.name.empty() ? "made-up" : share.name, share.path == "/again"};
  }
  absl::Status RemoveShare(absl::string_view device, absl::string_view name) override {
    absl::MutexLock lock(&mutex_);
    if (!devices_.contains(std::string(device))) return absl::NotFoundError("no such device");
    return std::erase_if(shares_, [&](const auto& share) { return share.name == name; }) == 0
               ? absl::NotFoundError("no such share")
               : absl::OkStatus();
  }
  absl::StatusOr<std::vector<shares::ShareSpec>> ListShares(
      absl::string_view device) const override {
    absl::MutexLock lock(&mutex_);
    if (!devices_.contains(std::string(device))) return absl::NotFoundError("no such device");
    return shares_;
  }
  absl::StatusOr<std::string> CommandDevice(absl::string_view device, const std::string& command,
                                            absl::string_view text) const override {
    absl::MutexLock lock(&mutex_);
    if (!devices_.contains(std::string(device))) return absl::NotFoundError("no such device");
    if (command == "json") return R"({"link": "up"})";
    if (command == "deep") return std::string(100, '[');
    if (command == "echo") return std::string(text);
    return absl::UnimplementedError("no such command");
  }
  absl::StatusOr<ReloadReport> ReloadDevice(absl::string_view name,
                                            const std::filesystem::path& from) override {
    ReloadReport report;
    report.device = std::string(name);
    report.version_after = from.native();
    return report;
  }
  absl::StatusOr<uint64_t> StartTrace(absl::string_view name, const std::filesystem::path& output,
                                      absl::Duration duration) override {
    traced = absl::StrCat(name, " ", output.native(), " ", absl::FormatDuration(duration));
    return 7;
  }
  absl::StatusOr<uint64_t> StartRecord(absl::string_view name, const std::filesystem::path& output,
                                       absl::Duration duration, bool payload) override {
    recorded = absl::StrCat(name, " ", output.native(), " ", absl::FormatDuration(duration),
                            payload ? " payload" : "");
    return 7;
  }
  absl::StatusOr<RecordingReport> StopRecording(uint64_t number) override {
    if (number != 7) return absl::NotFoundError("no such recording");
    return RecordingReport{.devices = 1, .events = 2, .dropped = 3, .bytes = 4};
  }
  absl::Status ApplyGuest(const swiotlb::GuestCapabilities& guest) override {
    guest_size = guest.swiotlb_size;
    return guest.swiotlb_base == 0x666000 ? absl::AlreadyExistsError("reported before")
                                          : absl::OkStatus();
  }
  absl::StatusOr<DeviceReport> InspectDevice(absl::string_view name) const override {
    absl::MutexLock lock(&mutex_);
    const auto it = devices_.find(std::string(name));
    if (it == devices_.end()) return absl::NotFoundError("no such device");
    return it->second;
  }
  std::vector<DeviceReport> InspectAll() const override {
    absl::MutexLock lock(&mutex_);
    std::vector<DeviceReport> reports;
    for (const auto& [name, report] : devices_) reports.push_back(report);
    return reports;
  }
  const Log& log() const override { return log_; }

  absl::Notification slow_started;
  absl::Notification slow_release;
  std::string traced;
  std::string recorded;
  std::atomic<uint64_t> guest_size{0};

 private:
  mutable absl::Mutex mutex_;
  std::map<std::string, DeviceReport> devices_ ABSL_GUARDED_BY(mutex_);
  std::vector<shares::ShareSpec> shares_ ABSL_GUARDED_BY(mutex_);
  Log log_ = Log::ToSink([](LogLevel, absl::string_view) {}, LogLevel::kInfo);
};

constexpr char kAdd[] =
    R"({"command":"add","device":{"name":"NAME","plugin":"p","socket":"/s","options":{"a":1}}})";

std::string AddLine(const std::string& name) {
  std::string line = kAdd;
  return line.replace(line.find("NAME"), 4, name);
}

json Ask(ControlTarget* target, const std::string& line) {
  const auto request = ParseControlLine(line);
  return json::parse(request.ok() ? ExecuteControl(target, *request)
                                  : ControlErrorLine(request.status(), nullptr));
}

std::string ErrorOf(ControlTarget* target, const std::string& line) {
  const json answer = Ask(target, line);
  EXPECT_FALSE(answer["ok"].get<bool>()) << line;
  return answer["error"]["message"];
}

TEST(ControlProtocol, DeviceLifetime) {
  FakeTarget target;
  EXPECT_EQ(Ask(&target, R"({"command":"list"})")["result"], json::array());
  EXPECT_TRUE(Ask(&target, AddLine("a"))["ok"].get<bool>());
  const json again = Ask(&target, AddLine("a"));
  EXPECT_EQ(again["error"]["code"], "ALREADY_EXISTS");
  const json list = Ask(&target, R"({"command":"list","id":"x"})");
  EXPECT_EQ(list["id"], "x");
  EXPECT_EQ(list["result"][0]["name"], "a");
  const json device = Ask(&target, R"({"command":"inspect","name":"a","id":7})");
  EXPECT_EQ(device["id"], 7);
  EXPECT_EQ(device["result"]["options"]["a"], "1");
  EXPECT_EQ(device["result"]["socket"], "/s");
  EXPECT_FALSE(device["result"]["queues"][0].contains("ring")) << "it does not run";
  EXPECT_EQ(device["result"]["queues"][1]["ring"]["size"], 128);
  EXPECT_EQ(device["result"]["queues"][1]["ring"]["avail"], "0x5c000800");
  const json stats = Ask(&target, R"({"command":"stats"})");
  EXPECT_EQ(stats["result"][0]["total"]["requests"], 7);
  EXPECT_EQ(stats["result"][0]["total"]["slot_wait_ns"], 11);
  EXPECT_EQ(stats["result"][0]["queues"].size(), 2u);
  EXPECT_THAT(
      Ask(&target, R"({"command":"stats","format":"prometheus"})")["result"].get<std::string>(),
      HasSubstr("virtbay_queue_requests_total{device=\"a\",queue=\"1\"} 4\n"));
  EXPECT_TRUE(Ask(&target, R"({"command":"remove","name":"a"})")["ok"].get<bool>());
  EXPECT_EQ(Ask(&target, R"({"command":"remove","name":"a"})")["error"]["code"], "NOT_FOUND");
}

TEST(ControlProtocol, ATraceIsBegunAndEnded) {
  FakeTarget target;
  const auto trace = [&](const std::string& rest) {
    return Ask(&target, R"({"command":"trace",)" + rest + "}");
  };
  const json begun = trace(R"("name":"a","output":"/o","seconds":1.5)");
  EXPECT_EQ(begun["result"]["trace"], 7) << begun;
  EXPECT_EQ(target.traced, "a /o 1.5s");
  EXPECT_EQ(trace(R"("output":"/o","seconds":3600)")["ok"], true);
  EXPECT_EQ(target.traced, " /o 1h");
  target.traced.clear();
  for (const char* wrong :
       {R"("output":"/o")", R"("seconds":1)", R"("output":"o","seconds":1)",
        R"("output":"/o\u0000x","seconds":1)", R"("output":7,"seconds":1)",
        R"("output":"/o","seconds":0)", R"("output":"/o","seconds":-1)",
        R"("output":"/o","seconds":3601)", R"("output":"/o","seconds":1e300)",
        R"("output":"/o","seconds":"1")", R"("output":"/o","seconds":1,"name":"")",
        R"("output":"/o","seconds":1,"name":7)", R"("output":"/o","seconds":1,"x":1)"}) {
    EXPECT_EQ(trace(wrong)["error"]["code"], "INVALID_ARGUMENT") << wrong;
  }
  EXPECT_EQ(target.traced, "");
  const json ended = Ask(&target, R"({"command":"trace-stop","trace":7})");
  EXPECT_EQ(ended["result"], json({{"devices", 1}, {"events", 2}, {"dropped", 3}, {"bytes", 4}}));
  EXPECT_EQ(Ask(&target, R"({"command":"trace-stop","trace":8})")["error"]["code"], "NOT_FOUND");
  for (const char* wrong :
       {R"({"command":"trace-stop"})", R"({"command":"trace-stop","trace":-1})",
        R"({"command":"trace-stop","trace":"7"})", R"({"command":"trace-stop","trace":7,"x":1})"}) {
    EXPECT_EQ(Ask(&target, wrong)["error"]["code"], "INVALID_ARGUMENT") << wrong;
  }
}

TEST(ControlProtocol, ARecordIsBegunAndEnded) {
  FakeTarget target;
  const auto record = [&](const std::string& rest) {
    return Ask(&target, R"({"command":"record","output":"/o","seconds":2)" + rest + "}");
  };
  EXPECT_EQ(record(R"(,"name":"a")")["result"]["record"], 7);
  EXPECT_EQ(target.recorded, "a /o 2s");
  EXPECT_EQ(record(R"(,"name":"a","payload":true)")["ok"], true);
  EXPECT_EQ(target.recorded, "a /o 2s payload");
  target.recorded.clear();
  for (const char* wrong :
       {"", R"(,"name":"")", R"(,"name":"a","payload":1)", R"(,"name":"a","trace":1)"}) {
    EXPECT_EQ(record(wrong)["error"]["code"], "INVALID_ARGUMENT") << wrong;
  }
  EXPECT_EQ(target.recorded, "");
  EXPECT_EQ(Ask(&target, R"({"command":"record-stop","record":7})")["result"]["events"], 2);
  EXPECT_EQ(Ask(&target, R"({"command":"record-stop","record":8})")["error"]["code"], "NOT_FOUND");
  EXPECT_EQ(Ask(&target, R"({"command":"record-stop","trace":7})")["error"]["code"],
            "INVALID_ARGUMENT");
}

TEST(ControlProtocol, SharesOfADevice) {
  FakeTarget target;
  ASSERT_TRUE(Ask(&target, AddLine("d"))["ok"].get<bool>());
  const json added = Ask(&target, R"({"command":"share-add","device":"d","share":
      {"name":"a","path":"/srv","readonly":true,"uid":5,"umask":"022","xattr":"user.a=b"}})");
  EXPECT_EQ(added["result"], json::parse(R"({"name":"a","existing":false})"));
  EXPECT_EQ(
      Ask(&target, R"({"command":"share-add","device":"d","share":{"path":"/again"}})")["result"],
      json::parse(R"({"name":"made-up","existing":true})"));
  EXPECT_EQ(Ask(&target, R"({"command":"share-list","device":"d"})")["result"],
            json::parse(R"([{"name":"a","path":"/srv","options":{"readonly":"true","uid":"5",
                             "umask":"022","xattr":"user.a=b"}},
                            {"name":"","path":"/again","options":{}}])"));
  EXPECT_EQ(Ask(&target, R"({"command":"share-remove","device":"d","name":"a"})")["ok"], true);
  EXPECT_EQ(Ask(&target, R"({"command":"share-remove","device":"d","name":"a"})")["error"]["code"],
            "NOT_FOUND");
  for (const char* command : {"share-add", "share-remove", "share-list"}) {
    EXPECT_EQ(ErrorOf(&target, absl::StrCat(R"({"command":")", command, "\"}")),
              "device: is missing");
  }
  const auto refuses = [&](const std::string& share, const std::string& reason) {
    EXPECT_EQ(ErrorOf(&target, R"({"command":"share-add","device":"d","share":)" + share + "}"),
              reason);
  };
  refuses("[]", "share: must be an object");
  refuses("{}", "share.path: is missing");
  refuses(R"({"path":""})", "share.path: must not be empty");
  refuses(R"({"path":5})", "share.path: must be a string");
  refuses(R"({"path":"srv"})", "share.path: 'srv' is not an absolute path");
  refuses(R"({"path":"./srv"})", "share.path: './srv' is not an absolute path");
  refuses(R"({"name":"","path":"/"})", "share.name: must not be empty");
  refuses(R"({"path":"/","umask":22})",
          "share.umask: is octal and must be a string, such as \"022\"");
  refuses(R"({"path":"/","a":[]})", "share.a: must be a string, a number, true or false");
  refuses(R"({"path":"/","a b":1})", "share.a b: is not an option name");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"share-add","device":"d"})"), "share: is missing");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"share-remove","device":"d"})"), "name: is missing");
}

TEST(ControlProtocol, CommandsOfADevice) {
  FakeTarget target;
  Ask(&target, AddLine("d"));
  const auto command = [&](const std::string& rest) {
    return Ask(&target, R"({"command":"device","device":"d",)" + rest + "}");
  };
  EXPECT_EQ(command(R"("do":"echo","text":"up")")["result"], (json{{"answer", "up"}}));
  EXPECT_EQ(command(R"("do":"echo")")["result"], (json{{"answer", ""}}));
  EXPECT_EQ(command(R"("do":"json")")["result"], (json{{"answer", {{"link", "up"}}}}));
  // Whatever a plugin says is at worst a text.
  EXPECT_EQ(command(R"("do":"deep")")["result"], (json{{"answer", std::string(100, '[')}}));
  EXPECT_EQ(command(R"("do":"jump")")["ok"], false);
  EXPECT_EQ(ErrorOf(&target, R"({"command":"device","device":"d"})"), "do: is missing");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"device","device":"e","do":"echo"})"), "no such device");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"device","device":"d","do":"echo","text":1})"),
            "text: must be a string");
}

TEST(ControlProtocol, DevicesWithShares) {
  const auto config = DeviceFromJson(json::parse(
      R"({"name":"d","plugin":"virtiofs","socket":"/s","shares":[{"name":"a","path":"/srv"}]})"));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->spec.options.at("aggregate"), "true");
  EXPECT_EQ(config->shares.at(0).spec.path, "/srv");
  FakeTarget target;
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"shares":{}}})"),
            "shares: must be an array");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"shares":[{"path":"srv"}]}})"),
            "share.path: 'srv' is not an absolute path");
  for (const char* where :
       {R"("options":{"shared-dir":"srv"})", R"("device-string":"x;shared-dir=srv")"}) {
    EXPECT_EQ(ErrorOf(&target, absl::StrCat(R"({"command":"add","device":{"name":"d",)",
                                            R"("plugin":"virtiofs","socket":"/s",)", where, "}}")),
              "options.shared-dir: 'srv' is not an absolute path");
  }
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"shares":[{"name":"a"}]}})"),
            "share.path: is missing");
}

TEST(ControlProtocol, LogLevel) {
  FakeTarget target;
  EXPECT_EQ(Ask(&target, R"({"command":"log-level"})")["result"]["level"], "info");
  EXPECT_EQ(Ask(&target, R"({"command":"log-level","level":"debug"})")["result"]["level"], "debug");
  EXPECT_EQ(target.log().level(), LogLevel::kDebug);
  EXPECT_EQ(Ask(&target, R"({"command":"guest","swiotlb":"0x10000000,64M"})")["ok"], true);
  EXPECT_EQ(target.guest_size, 64u << 20);
  EXPECT_EQ(Ask(&target, R"({"command":"guest","swiotlb":"none"})")["ok"], true);
  EXPECT_EQ(target.guest_size, 0u);
  EXPECT_THAT(ErrorOf(&target, R"({"command":"guest","swiotlb":"lowmem"})"),
              HasSubstr("is not of the form 0xBASE,SIZE"));
  EXPECT_THAT(ErrorOf(&target, R"({"command":"guest"})"), HasSubstr("swiotlb: is missing"));
  EXPECT_THAT(ErrorOf(&target, R"({"command":"guest","swiotlb":"0x666000,4096"})"),
              HasSubstr("reported before"));
  EXPECT_THAT(ErrorOf(&target, R"({"command":"log-level","level":"x\ny"})"),
              HasSubstr("'x\\ny' is not one of"));
}

TEST(ControlProtocol, Mistakes) {
  FakeTarget target;
  EXPECT_EQ(ErrorOf(&target, "hello"), "the line is not JSON");
  EXPECT_EQ(ErrorOf(&target, "{} {}"), "the line is not JSON");
  EXPECT_EQ(ErrorOf(&target, "[]"), "the line is not a JSON object");
  EXPECT_EQ(ErrorOf(&target, "{}"), "command: is missing");
  EXPECT_EQ(ErrorOf(&target, R"({"command":3})"), "command: must be a string");
  EXPECT_THAT(ErrorOf(&target, R"({"command":"fly"})"), HasSubstr("'fly' is not one of"));
  EXPECT_EQ(ErrorOf(&target, R"({"command":"list","nmae":1})"), "'nmae': unknown key");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"inspect"})"), "name: is missing");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"list","id":[1]})"), "id: must be a string or a number");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":[]})"), "device: must be an object");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"nmae":"x"}})"), "nmae: unknown key");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"plugin":"p"}})"), "name: is missing");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"fd":5}})"),
            "fd: cannot be given here, use socket");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"queue-size":18446744073709551615}})"),
            "queue-size: is too large");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"add","device":{"options":{"a":null}}})"),
            "options.a: must be a string, a number, true or false");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"stats","format":"xml"})"),
            "format: 'xml' is not one of json, prometheus");
}

TEST(ControlProtocol, NamesGivenTwice) {
  FakeTarget target;
  const auto refuses = [&](const std::string& line, const std::string& key) {
    EXPECT_EQ(ErrorOf(&target, line), key + ": given twice") << line;
  };
  refuses(R"({"command":"list","command":"remove"})", "'command'");
  refuses(R"({"command":"add","device":{"name":"a","plugin":"p","plugin":"q"}})", "'plugin'");
  refuses(R"({"command":"add","device":{"options":{"a":1,"b":2,"a":3}}})", "'a'");
  refuses(R"({"command":"list","id":1,"i\u0064":2})", "'id'");
  refuses(R"({"command":"list","x":[{"y":1},{"y":1,"y":1}]})", "'y'");
  refuses(R"({"command":"list","\n":1,"\n":1})", "'\\n'");
  EXPECT_EQ(ErrorOf(&target, R"({"command":"list","command":"list")"), "the line is not JSON");
  // One name in several objects is no name given twice.
  EXPECT_EQ(ErrorOf(&target, R"({"command":"list","x":[{"y":1},{"y":1}]})"), "'x': unknown key");
  EXPECT_TRUE(Ask(&target, R"({"command":"add","device":{"name":"name","plugin":"p","socket":"/s",
                               "options":{"name":1,"plugin":2}}})")["ok"]
                  .get<bool>());
}

TEST(ControlProtocol, SocketsOfSystemdCannotBeAdded) {
  FakeTarget target;
  for (const std::string socket : {"systemd", "systemd:data", "systemd:"}) {
    json request = json::parse(AddLine("a"));
    request["device"]["socket"] = socket;
    EXPECT_THAT(ErrorOf(&target, request.dump()), HasSubstr("socket: '" + socket + "' stands for"));
  }
  json request = json::parse(AddLine("a"));
  request["device"]["socket"] = "./systemd";
  EXPECT_TRUE(Ask(&target, request.dump())["ok"].get<bool>());
}

TEST(ControlProtocol, HostileLines) {
  FakeTarget target;
  EXPECT_THAT(ErrorOf(&target, std::string(60000, '[')), HasSubstr("nested deeper"));
  EXPECT_THAT(ErrorOf(&target, std::string(kMaxControlLine + 1, ' ')), HasSubstr("longer than"));
  ErrorOf(&target, std::string(1, '\0'));
  ErrorOf(&target, "{\"command\":\"\xff\xfe\"}");
  ErrorOf(&target, "{\"command\":\"inspect\",\"name\":\"\\ud800\"}");
  ErrorOf(&target, R"({"command":1e999})");
  // Brackets inside strings are not depth.
  EXPECT_TRUE(Ask(&target, R"({"command":"list","id":"[[[[[[[[[[[[\"{{{{{{"})")["ok"].get<bool>());
}

TEST(ControlProtocol, AnswersWithBytesThatAreNotUtf8) {
  FakeTarget target;
  DeviceConfig config;
  config.spec.name = "raw";
  config.spec.options["shared-dir"] = "/\xff";
  ASSERT_TRUE(target.AddDevice(config).ok());
  const json answer = Ask(&target, R"({"command":"inspect","name":"raw"})");
  EXPECT_TRUE(answer["ok"].get<bool>());
}

class ControlServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (std::filesystem::temp_directory_path() / "virtbay-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = pattern + "/ctl";
    auto server = ControlServer::Create(path_, &target_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(server).value();
    server_->Start();
  }
  void TearDown() override {
    if (!target_.slow_release.HasBeenNotified()) target_.slow_release.Notify();
    server_.reset();
    EXPECT_FALSE(std::filesystem::exists(path_));
    std::filesystem::remove_all(directory_);
  }

  UniqueFd Connect() {
    auto fd = ConnectUnix(path_);
    EXPECT_TRUE(fd.ok()) << fd.status();
    return fd.ok() ? std::move(fd).value() : UniqueFd();
  }
  static void Send(const UniqueFd& fd, const std::string& text) {
    size_t sent = 0;
    while (sent < text.size()) {
      const ssize_t n = ::send(fd.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }
  // Up to the newline; "" when the server closed.
  static std::string Line(const UniqueFd& fd) {
    std::string line;
    char c = 0;
    while (::recv(fd.get(), &c, 1, 0) == 1) {
      if (c == '\n') return line;
      line.push_back(c);
    }
    return "";
  }
  static json Answer(const UniqueFd& fd) {
    return json::parse(Line(fd), nullptr, /*allow_exceptions=*/false);
  }

  std::string directory_;
  std::string path_;
  FakeTarget target_;
  std::unique_ptr<ControlServer> server_;
};

TEST_F(ControlServerTest, Mode) {
  struct stat info = {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
}

TEST_F(ControlServerTest, PathInUse) {
  const auto second = ControlServer::Create(path_, &target_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(path_));
  const auto too_long = ControlServer::Create(directory_ + "/" + std::string(200, 'x'), &target_);
  EXPECT_THAT(std::string(too_long.status().message()), HasSubstr("at most 107"));
  const std::string file = directory_ + "/file";
  std::ofstream(file) << "x";
  EXPECT_FALSE(ControlServer::Create(file, &target_).ok());
  EXPECT_TRUE(std::filesystem::exists(file));
}

TEST_F(ControlServerTest, ReplacesAStaleSocket) {
  const std::string path = directory_ + "/stale";
  {
    auto listener = vhost_user::ListenAt(path, 0600);
    ASSERT_TRUE(listener.ok());
    // Kept past the end of the server, as by one that was killed.
    ASSERT_EQ(::link(path.c_str(), (path + "2").c_str()), 0);
  }
  ASSERT_EQ(::rename((path + "2").c_str(), path.c_str()), 0);
  ASSERT_TRUE(std::filesystem::exists(path));
  EXPECT_TRUE(ControlServer::Create(path, &target_).ok());
}

TEST_F(ControlServerTest, Client) {
  const auto added = CallControl(path_, json::parse(AddLine("a")));
  ASSERT_TRUE(added.ok()) << added.status();
  const auto missing = CallControl(path_, {{"command", "inspect"}, {"name", "b"}});
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  const auto nobody = CallControl(directory_ + "/nobody", {{"command", "list"}});
  EXPECT_THAT(std::string(nobody.status().message()), HasSubstr("nobody"));
}

TEST_F(ControlServerTest, AClientIsToldThatTheServiceIsGone) {
  FakeTarget target;
  const std::string path = directory_ + "/gone";
  auto server = ControlServer::Create(path, &target);
  ASSERT_TRUE(server.ok()) << server.status();
  auto connection = ControlConnection::Open(path);
  ASSERT_TRUE(connection.ok()) << connection.status();
  server->reset();
  const auto answer = connection->Call({{"command", "list"}});
  EXPECT_EQ(answer.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(answer.status().message()),
              HasSubstr("the service ends, or is replaced"));
}

TEST_F(ControlServerTest, SeveralRequestsInOneWrite) {
  const UniqueFd fd = Connect();
  Send(fd, "{\"command\":\"list\",\"id\":1}\r\n\nnonsense\n{\"command\":\"list\",\"id\":2}\n");
  EXPECT_EQ(Answer(fd)["id"], 1);
  EXPECT_THAT(Line(fd), HasSubstr("the line is empty")) << "one answer for each line";
  EXPECT_FALSE(Answer(fd)["ok"].get<bool>());
  EXPECT_EQ(Answer(fd)["id"], 2);
}

TEST_F(ControlServerTest, WhoComesBeforeItStartsIsAnsweredThen) {
  FakeTarget target;
  const std::string path = directory_ + "/early";
  auto server = ControlServer::Create(path, &target);
  ASSERT_TRUE(server.ok()) << server.status();
  auto fd = ConnectUnix(path);
  ASSERT_TRUE(fd.ok()) << fd.status();
  Send(*fd, "{\"command\":\"list\"}\n");
  char c = 0;
  EXPECT_EQ(::recv(fd->get(), &c, 1, MSG_DONTWAIT), -1);
  DeviceConfig config;
  config.spec.name = "there";
  ASSERT_TRUE(target.AddDevice(config).ok());
  (*server)->Start();
  EXPECT_THAT(Line(*fd), HasSubstr("there"));
}

TEST_F(ControlServerTest, NeverStartedItGoesWithItsSocket) {
  const std::string path = directory_ + "/never";
  auto server = ControlServer::Create(path, &target_);
  ASSERT_TRUE(server.ok()) << server.status();
  auto fd = ConnectUnix(path);
  ASSERT_TRUE(fd.ok()) << fd.status();
  server->reset();
  EXPECT_EQ(Line(*fd), "");
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(ControlServerTest, HalfClosedClientIsAnswered) {
  const UniqueFd fd = Connect();
  Send(fd, "{\"command\":\"list\",\"id\":1}\n{\"command\":\"list\",\"id\":2}");
  ASSERT_EQ(::shutdown(fd.get(), SHUT_WR), 0);
  EXPECT_EQ(Answer(fd)["id"], 1);
  EXPECT_EQ(Answer(fd)["id"], 2);
  EXPECT_EQ(Line(fd), "");
}

TEST_F(ControlServerTest, EndlessLineIsRefused) {
  const UniqueFd fd = Connect();
  Send(fd, std::string(kMaxControlLine + 1, 'x'));
  EXPECT_THAT(Line(fd), HasSubstr("longer than"));
  EXPECT_EQ(Line(fd), "");
}

TEST_F(ControlServerTest, SlowChangeHoldsUpNobody) {
  const UniqueFd slow = Connect();
  Send(slow, AddLine("slow") + "\n");
  target_.slow_started.WaitForNotification();
  // A client that asks and goes away while its answer is being made.
  {
    const UniqueFd gone = Connect();
    Send(gone, AddLine("gone") + "\n");
  }
  const UniqueFd quick = Connect();
  Send(quick, "{\"command\":\"list\",\"id\":1}\n");
  EXPECT_EQ(Answer(quick)["id"], 1);
  target_.slow_release.Notify();
  EXPECT_TRUE(Answer(slow)["ok"].get<bool>());
}

TEST_F(ControlServerTest, ClientThatNeverReadsHoldsUpNobody) {
  const UniqueFd deaf = Connect();
  ASSERT_EQ(::fcntl(deaf.get(), F_SETFL, O_NONBLOCK), 0);
  std::string flood;
  for (int i = 0; i < 20000; ++i) flood += "{\"command\":\"stats\",\"format\":\"prometheus\"}\n";
  // As much as the socket takes: the server stops reading a client that does not read.
  for (size_t sent = 0; sent < flood.size();) {
    const ssize_t n =
        ::send(deaf.get(), flood.data() + sent, flood.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) break;
    sent += static_cast<size_t>(n);
  }
  const UniqueFd other = Connect();
  Send(other, "{\"command\":\"list\",\"id\":9}\n");
  EXPECT_EQ(Answer(other)["id"], 9);
}

TEST_F(ControlServerTest, IdleClientsDoNotKeepOthersOut) {
  std::vector<UniqueFd> idle;
  for (size_t i = 0; i < 3 * server_->max_clients(); ++i) idle.push_back(Connect());
  const UniqueFd fd = Connect();
  Send(fd, "{\"command\":\"list\",\"id\":1}\n");
  EXPECT_EQ(Answer(fd)["id"], 1);
  // The oldest was dropped in its favour.
  EXPECT_EQ(Line(idle.front()), "");
}

TEST_F(ControlServerTest, FewClientsWhereFilesAreFew) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const std::pair<rlim_t, size_t> cases[] = {{48, 2}, {256, 8}, {before.rlim_max, 64}};
  for (const auto& [limit, clients] : cases) {
    if (limit >= 2048 || clients < 64) {
      const rlimit now = {limit, before.rlim_max};
      ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &now), 0);
      const auto server = ControlServer::Create(path_ + "-few", &target_);
      EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
      ASSERT_TRUE(server.ok()) << server.status();
      EXPECT_EQ((*server)->max_clients(), clients);
    }
  }
}

TEST_F(ControlServerTest, BusyClientsDoNotKeepOthersOut) {
  const UniqueFd slow = Connect();
  Send(slow, AddLine("slow") + "\n");
  target_.slow_started.WaitForNotification();
  std::vector<UniqueFd> busy;
  for (size_t i = 1; i < server_->max_clients(); ++i) {
    busy.push_back(Connect());
    Send(busy.back(), AddLine("waits-" + std::to_string(i)) + "\n");
  }
  for (int i = 0; i < 3; ++i) {
    const UniqueFd fd = Connect();
    Send(fd, "{\"command\":\"list\",\"id\":1}\n");
    EXPECT_EQ(Answer(fd)["id"], 1);
  }
  // Who had to go for them is told, and what it asked for is not done behind its back.
  EXPECT_EQ(Answer(busy.front())["error"]["code"], "UNAVAILABLE");
  EXPECT_EQ(Line(busy.front()), "");
  target_.slow_release.Notify();
  EXPECT_TRUE(Answer(slow)["ok"].get<bool>()) << "it had begun";
  EXPECT_TRUE(Answer(busy.back())["ok"].get<bool>());
  EXPECT_EQ(target_.InspectDevice("waits-1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ControlServerTest, ClientsThatNeverReadDoNotKeepOthersOut) {
  std::string flood;
  for (int i = 0; i < 2000; ++i) flood += "{\"command\":\"stats\",\"format\":\"prometheus\"}\n";
  std::vector<UniqueFd> deaf;
  for (size_t i = 0; i < server_->max_clients(); ++i) {
    deaf.push_back(Connect());
    static_cast<void>(
        ::send(deaf.back().get(), flood.data(), flood.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  for (int i = 0; i < 3; ++i) {
    const UniqueFd fd = Connect();
    Send(fd, "{\"command\":\"list\",\"id\":1}\n");
    EXPECT_EQ(Answer(fd)["id"], 1);
  }
}

TEST_F(ControlServerTest, ChangesThatWaitHaveALimit) {
  const UniqueFd slow = Connect();
  Send(slow, AddLine("slow") + "\n");
  target_.slow_started.WaitForNotification();
  const size_t limit = 2 * ControlServer::kMaxClients;
  for (size_t i = 0; i < limit; ++i) {
    const UniqueFd gone = Connect();
    Send(gone, AddLine("gone-" + std::to_string(i)) + "\n");
  }
  const UniqueFd late = Connect();
  Send(late, AddLine("late") + "\n");
  EXPECT_EQ(Answer(late)["error"]["code"], "UNAVAILABLE");
  target_.slow_release.Notify();
  EXPECT_TRUE(Answer(slow)["ok"].get<bool>());
  // What was asked for is done although nobody waits for it; in order, so the last one is later.
  json answer;
  do {
    Send(late, AddLine("late") + "\n");
    answer = Answer(late);
  } while (answer["error"]["code"] == "UNAVAILABLE");
  EXPECT_TRUE(answer["ok"].get<bool>());
  EXPECT_TRUE(target_.InspectDevice("gone-0").ok());
  EXPECT_TRUE(target_.InspectDevice("gone-" + std::to_string(limit - 1)).ok());
}

}  // namespace
}  // namespace virtbay::device_host
