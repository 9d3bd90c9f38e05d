#include "hostif/device_host/control_protocol.h"

#include <exception>
#include <initializer_list>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/prometheus.h"
#include "hostif/device_host/report.h"
#include "hostif/json/strict_json.h"
#include "hostif/swiotlb/option.h"

namespace virtbay::device_host {
namespace {

using nlohmann::json;

absl::Status Invalid(absl::string_view text) { return absl::InvalidArgumentError(text); }

// Requests may hold anything; what is echoed must stay one short readable line.
std::string Quoted(absl::string_view text) {
  return absl::StrCat("'", absl::CHexEscape(text.substr(0, 64)), "'");
}

absl::Status OnlyKeys(const json& object, std::initializer_list<absl::string_view> allowed) {
  for (const auto& item : object.items()) {
    bool known = item.key() == "command" || item.key() == "id";
    for (const absl::string_view key : allowed) known = known || item.key() == key;
    if (!known) return Invalid(absl::StrCat(Quoted(item.key()), ": unknown key"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> StringKey(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return Invalid(absl::StrCat(key, ": is missing"));
  if (!it->is_string()) return Invalid(absl::StrCat(key, ": must be a string"));
  return it->get<std::string>();
}

absl::StatusOr<KeyValue> Scalar(const json& value) {
  if (value.is_string()) return KeyValue(value.get<std::string>());
  if (value.is_boolean()) return KeyValue(value.get<bool>());
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    if (number > static_cast<uint64_t>(INT64_MAX)) return Invalid("is too large");
    return KeyValue(static_cast<int64_t>(number));
  }
  if (value.is_number_integer()) return KeyValue(value.get<int64_t>());
  if (value.is_number_float()) return KeyValue(value.get<double>());
  return Invalid("must be a string, a number, true or false");
}

absl::StatusOr<json> List(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {}));
  json devices = json::array();
  for (const DeviceReport& report : target->InspectAll()) devices.push_back(SummaryJson(report));
  return devices;
}

absl::StatusOr<json> Inspect(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"name"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string name, StringKey(body, "name"));
  VIRTBAY_ASSIGN_OR_RETURN(const DeviceReport report, target->InspectDevice(name));
  return DeviceJson(report);
}

absl::StatusOr<json> Add(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"device"}));
  const auto device = body.find("device");
  if (device == body.end()) return Invalid("device: is missing");
  VIRTBAY_ASSIGN_OR_RETURN(DeviceConfig config, DeviceFromJson(*device));
  const std::string name = config.spec.name;
  VIRTBAY_RETURN_IF_ERROR(target->AddDevice(std::move(config)));
  return json{{"name", name}};
}

absl::StatusOr<json> Remove(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"name"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string name, StringKey(body, "name"));
  VIRTBAY_RETURN_IF_ERROR(target->RemoveDevice(name));
  return json{{"name", name}};
}

// Whoever sends a request has another working directory than the service.
absl::Status CheckAbsolute(absl::string_view key, absl::string_view path) {
  if (absl::StartsWith(path, "/")) return absl::OkStatus();
  return Invalid(absl::StrCat(key, ": ", Quoted(path), " is not an absolute path"));
}

// The share of a request: an object with name, path and the share's options.
absl::StatusOr<shares::ShareSpec> ShareFromJson(const json& object) {
  if (!object.is_object()) return Invalid("share: must be an object");
  shares::ShareSpec share;
  for (const auto& item : object.items()) {
    const auto value = Scalar(item.value());
    const absl::Status set = value.ok() ? SetShareKey(item.key(), *value, &share) : value.status();
    if (!set.ok()) {
      return Invalid(
          absl::StrCat("share.", absl::CHexEscape(item.key().substr(0, 64)), ": ", set.message()));
    }
  }
  if (share.path.empty()) return Invalid("share.path: is missing");
  VIRTBAY_RETURN_IF_ERROR(CheckAbsolute("share.path", share.path));
  return share;
}

absl::StatusOr<json> AddShare(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"device", "share"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string device, StringKey(body, "device"));
  const auto given = body.find("share");
  if (given == body.end()) return Invalid("share: is missing");
  VIRTBAY_ASSIGN_OR_RETURN(const shares::ShareSpec share, ShareFromJson(*given));
  VIRTBAY_ASSIGN_OR_RETURN(const shares::AddedShare added, target->AddShare(device, share));
  return json{{"name", added.name}, {"existing", added.existing}};
}

absl::StatusOr<json> RemoveShare(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"device", "name"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string device, StringKey(body, "device"));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string name, StringKey(body, "name"));
  VIRTBAY_RETURN_IF_ERROR(target->RemoveShare(device, name));
  return json{{"name", name}};
}

absl::StatusOr<json> ListShares(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"device"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string device, StringKey(body, "device"));
  VIRTBAY_ASSIGN_OR_RETURN(const std::vector<shares::ShareSpec> list, target->ListShares(device));
  json shares = json::array();
  for (const shares::ShareSpec& share : list) {
    shares.push_back({{"name", share.name}, {"path", share.path}, {"options", share.options}});
  }
  return shares;
}

absl::StatusOr<json> CommandDevice(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"device", "do", "text"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string device, StringKey(body, "device"));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string command, StringKey(body, "do"));
  std::string text;
  if (body.contains("text")) {
    VIRTBAY_ASSIGN_OR_RETURN(text, StringKey(body, "text"));
  }
  VIRTBAY_ASSIGN_OR_RETURN(const std::string answer, target->CommandDevice(device, command, text));
  // What is a JSON object is shown as such; the plugin may have written anything.
  constexpr size_t kMostJson = size_t{1} << 20;
  absl::StatusOr<json> parsed = ParseStrictJson(answer, kMostJson);
  return json{{"answer", parsed.ok() ? *std::move(parsed) : json(answer)}};
}

// Of a device, or of all whose plugin has that name.
absl::StatusOr<json> Reload(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"name", "from"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string name, StringKey(body, "name"));
  std::string from;
  if (body.contains("from")) {
    VIRTBAY_ASSIGN_OR_RETURN(from, StringKey(body, "from"));
    VIRTBAY_RETURN_IF_ERROR(CheckAbsolute("from", from));
  }
  std::vector<std::string> devices;
  for (const DeviceReport& report : target->InspectAll()) {
    if (report.info.name == name) devices.assign(1, name);
    if (report.info.name == name) break;
    if (report.info.plugin == name) devices.push_back(report.info.name);
  }
  if (devices.empty()) {
    return absl::NotFoundError(
        absl::StrCat("there is no device ", Quoted(name), ", nor one of a plugin of that name"));
  }
  json reports = json::array();
  for (const std::string& device : devices) {
    const absl::StatusOr<ReloadReport> report = target->ReloadDevice(device, from);
    if (!report.ok()) {
      if (devices.size() == 1) return report.status();
      return Annotate(report.status(), absl::StrCat(reports.size(), " of ", devices.size(),
                                                    " devices were reloaded, then"));
    }
    reports.push_back(ReloadJson(*report));
  }
  return reports;
}

// What `trace` and `record` have in common.
struct RecordingRequest {
  std::string name;  // empty: not given
  std::string output;
  absl::Duration duration;
};

absl::StatusOr<RecordingRequest> AsRecordingRequest(const json& body) {
  RecordingRequest request;
  if (body.contains("name")) {
    VIRTBAY_ASSIGN_OR_RETURN(request.name, StringKey(body, "name"));
    if (request.name.empty()) return Invalid("name: is empty");
  }
  VIRTBAY_ASSIGN_OR_RETURN(request.output, StringKey(body, "output"));
  VIRTBAY_RETURN_IF_ERROR(CheckAbsolute("output", request.output));
  if (request.output.find('\0') != std::string::npos) return Invalid("output: holds a zero byte");
  const auto seconds = body.find("seconds");
  if (seconds == body.end()) return Invalid("seconds: is missing");
  if (!seconds->is_number()) return Invalid("seconds: must be a number");
  const double given = seconds->get<double>();
  if (!(given > 0 && given <= kMostRecordingSeconds)) {
    return Invalid(absl::StrCat("seconds: must be above 0 and at most ", kMostRecordingSeconds));
  }
  request.duration = absl::Seconds(given);
  return request;
}

absl::StatusOr<json> StartTrace(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"name", "output", "seconds"}));
  VIRTBAY_ASSIGN_OR_RETURN(const RecordingRequest request, AsRecordingRequest(body));
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t number,
                           target->StartTrace(request.name, request.output, request.duration));
  return json{{"trace", number}};
}

absl::StatusOr<json> StartRecord(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"name", "output", "seconds", "payload"}));
  VIRTBAY_ASSIGN_OR_RETURN(const RecordingRequest request, AsRecordingRequest(body));
  if (request.name.empty()) return Invalid("name: is missing");
  bool payload = false;
  if (const auto found = body.find("payload"); found != body.end()) {
    if (!found->is_boolean()) return Invalid("payload: must be true or false");
    payload = found->get<bool>();
  }
  VIRTBAY_ASSIGN_OR_RETURN(const uint64_t number, target->StartRecord(request.name, request.output,
                                                                      request.duration, payload));
  return json{{"record", number}};
}

absl::StatusOr<json> StopRecording(ControlTarget* target, const json& body, const char* key) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {key}));
  const auto number = body.find(key);
  if (number == body.end()) return Invalid(absl::StrCat(key, ": is missing"));
  if (!number->is_number_unsigned()) return Invalid(absl::StrCat(key, ": must be a number"));
  VIRTBAY_ASSIGN_OR_RETURN(const RecordingReport report,
                           target->StopRecording(number->get<uint64_t>()));
  return json{{"devices", report.devices},
              {"events", report.events},
              {"dropped", report.dropped},
              {"bytes", report.bytes}};
}

absl::StatusOr<json> StopTrace(ControlTarget* target, const json& body) {
  return StopRecording(target, body, "trace");
}

absl::StatusOr<json> StopRecord(ControlTarget* target, const json& body) {
  return StopRecording(target, body, "record");
}

absl::StatusOr<json> Stats(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"format", "name"}));
  std::string format = "json";
  if (body.contains("format")) {
    VIRTBAY_ASSIGN_OR_RETURN(format, StringKey(body, "format"));
    if (format != "json" && format != "prometheus") {
      return Invalid(absl::StrCat("format: ", Quoted(format), " is not one of json, prometheus"));
    }
  }
  std::vector<DeviceReport> reports;
  if (body.contains("name")) {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string name, StringKey(body, "name"));
    VIRTBAY_ASSIGN_OR_RETURN(DeviceReport report, target->InspectDevice(name));
    reports.push_back(std::move(report));
  } else {
    reports = target->InspectAll();
  }
  if (format == "prometheus") return json(PrometheusText(reports));
  json devices = json::array();
  for (const DeviceReport& report : reports) devices.push_back(StatsJson(report));
  return devices;
}

absl::StatusOr<json> SetLogLevel(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"level"}));
  if (body.contains("level")) {
    VIRTBAY_ASSIGN_OR_RETURN(const std::string text, StringKey(body, "level"));
    const auto level = ParseLogLevel(text);
    if (!level.ok()) {
      return Invalid(absl::StrCat("level: ", Quoted(text),
                                  " is not one of trace, debug, info, warn, error, off"));
    }
    target->log().set_level(*level);
  }
  return json{{"level", std::string(LogLevelName(target->log().level()))}};
}

absl::StatusOr<json> GuestReport(ControlTarget* target, const json& body) {
  VIRTBAY_RETURN_IF_ERROR(OnlyKeys(body, {"swiotlb"}));
  VIRTBAY_ASSIGN_OR_RETURN(const std::string pool, StringKey(body, "swiotlb"));
  swiotlb::GuestCapabilities guest;
  if (pool != "none") {
    const auto parsed = swiotlb::ParsePool(pool);
    if (!parsed.ok()) return Annotate(parsed.status(), "swiotlb");
    guest = {parsed->base, parsed->size};
  }
  VIRTBAY_RETURN_IF_ERROR(target->ApplyGuest(guest));
  return json{{"swiotlb", pool}};
}

struct Command {
  absl::string_view name;
  bool change;
  absl::StatusOr<json> (*run)(ControlTarget*, const json&);
};

constexpr Command kCommands[] = {
    {"list", false, &List},
    {"inspect", false, &Inspect},
    {"add", true, &Add},
    {"remove", true, &Remove},
    {"stats", false, &Stats},
    {"log-level", false, &SetLogLevel},
    {"guest", false, &GuestReport},
    {"device", true, &CommandDevice},
    {"share-add", true, &AddShare},
    {"share-remove", true, &RemoveShare},
    {"share-list", true, &ListShares},
    {"reload", true, &Reload},
    {"trace", true, &StartTrace},
    {"trace-stop", true, &StopTrace},
    {"record", true, &StartRecord},
    {"record-stop", true, &StopRecord},
};

const Command* FindCommand(absl::string_view name) {
  for (const Command& command : kCommands) {
    if (command.name == name) return &command;
  }
  return nullptr;
}

absl::StatusOr<ControlRequest> Parse(absl::string_view line) {
  if (line.empty()) return Invalid("the line is empty");
  ControlRequest request;
  VIRTBAY_ASSIGN_OR_RETURN(request.body, ParseStrictJson(line, kMaxControlLine));
  VIRTBAY_ASSIGN_OR_RETURN(request.command, StringKey(request.body, "command"));
  const Command* command = FindCommand(request.command);
  if (command == nullptr) {
    return Invalid(
        absl::StrCat("command: ", Quoted(request.command),
                     " is not one of list, inspect, add, remove, stats, log-level, guest, "
                     "device, share-add, share-remove, share-list, reload, trace, trace-stop, "
                     "record, record-stop"));
  }
  request.change = command->change;
  if (const auto id = request.body.find("id"); id != request.body.end()) {
    if (id->is_structured()) return Invalid("id: must be a string or a number");
    request.id = *id;
  }
  return request;
}

}  // namespace

absl::StatusOr<DeviceConfig> DeviceFromJson(const json& device) {
  if (!device.is_object()) return Invalid("device: must be an object");
  DeviceConfig config;
  for (const auto& item : device.items()) {
    const std::string& key = item.key();
    if (key == "options") {
      if (!item.value().is_object()) return Invalid("options: must be an object");
      for (const auto& option : item.value().items()) {
        const auto value = Scalar(option.value());
        const absl::Status set =
            value.ok() ? SetDeviceOption(option.key(), *value, &config) : value.status();
        if (!set.ok()) {
          return Invalid(absl::StrCat("options.", absl::CHexEscape(option.key().substr(0, 64)),
                                      ": ", set.message()));
        }
      }
      continue;
    }
    if (key == "shares") {
      if (!item.value().is_array()) return Invalid("shares: must be an array");
      for (const json& share : item.value()) {
        ShareConfig made;
        VIRTBAY_ASSIGN_OR_RETURN(made.spec, ShareFromJson(share));
        config.shares.push_back(std::move(made));
      }
      continue;
    }
    // A number in a request cannot name a descriptor of this process that its sender owns.
    if (key == "fd") return Invalid("fd: cannot be given here, use socket");
    const auto value = Scalar(item.value());
    const absl::Status set = value.ok() ? SetDeviceKey(key, *value, &config) : value.status();
    if (!set.ok()) {
      return Invalid(absl::StrCat(absl::CHexEscape(key.substr(0, 64)), ": ", set.message()));
    }
  }
  // Those are handed over when the process starts, and the file that names them knows which.
  if (NamesPassedSocket(config.socket_path)) {
    return Invalid(absl::StrCat("socket: '", config.socket_path,
                                "' stands for a socket that systemd passes at the start; give a "
                                "path (./",
                                config.socket_path, " for a file of that name)"));
  }
  VIRTBAY_RETURN_IF_ERROR(FinishDevice(&config));
  // Of a string of WSL as well.
  if (const auto shared = config.spec.options.find("shared-dir");
      shared != config.spec.options.end()) {
    VIRTBAY_RETURN_IF_ERROR(CheckAbsolute("options.shared-dir", shared->second));
  }
  return config;
}

absl::StatusOr<ControlRequest> ParseControlLine(absl::string_view line) noexcept {
  try {
    return Parse(line);
  } catch (const std::exception& error) {
    return absl::InternalError(error.what());
  }
}

ControlRequest EndOfRecording(uint64_t number) {
  return {.command = "record-stop",
          .id = {},
          .body = {{"command", "record-stop"}, {"record", number}},
          .change = true};
}

std::string ExecuteControl(ControlTarget* target, const ControlRequest& request,
                           uint64_t* recording) noexcept {
  try {
    const Command* command = FindCommand(request.command);
    if (command == nullptr) return ControlErrorLine(Invalid("unknown command"), request.id);
    absl::StatusOr<json> result = command->run(target, request.body);
    if (!result.ok()) return ControlErrorLine(result.status(), request.id);
    if (recording != nullptr && (command->run == &StartTrace || command->run == &StartRecord)) {
      *recording = result->at(request.command).get<uint64_t>();
    }
    json answer{{"ok", true}, {"result", std::move(result).value()}};
    if (!request.id.is_null()) answer["id"] = request.id;
    return ToLine(answer);
  } catch (const std::exception& error) {
    return ControlErrorLine(absl::InternalError(error.what()), request.id);
  }
}

std::string ControlErrorLine(const absl::Status& status, const json& id) noexcept {
  try {
    json answer{{"ok", false},
                {"error",
                 {{"code", absl::StatusCodeToString(status.code())},
                  {"message", std::string(status.message())}}}};
    if (!id.is_null()) answer["id"] = id;
    return ToLine(answer);
  } catch (const std::exception&) {
    // Only memory can run out here; the client still gets a line it can parse.
    return R"({"ok":false})";
  }
}

}  // namespace virtbay::device_host
