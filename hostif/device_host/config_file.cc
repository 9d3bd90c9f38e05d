#include "hostif/device_host/config_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <map>
#include <new>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "framework/base/status.h"
#include "hostif/device_host/device_keys.h"
#include "hostif/device_host/guest_address.h"
#include "hostif/device_host/process.h"
#include "hostif/device_host/text_file.h"

namespace virtbay::device_host {
namespace {

constexpr size_t kMaxDevices = 4096;

// toml++ makes a table of every part of a dotted key, goes down them by recursion and has no limit
// but the stack. It does limit nested values, to 256, and each of them may have a dotted key: this
// keeps the deepest tree at some 4000 tables, for which 1 MiB of stack is enough. No key that means
// anything here has more than three parts.
constexpr size_t kMaxKeyParts = 16;

// toml++ speaks std::string_view, which is a type of its own beside absl's.
absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// Keys come from the file, so they may hold anything; an error must stay one readable line.
std::string Printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 128)) {
    const auto byte = static_cast<unsigned char>(c);
    out.push_back(byte < 0x20 || byte == 0x7f ? '?' : c);
  }
  return out;
}

// Where the string ends that begins with the quote at `begin`. One that is not closed ends with its
// line, or with the text if it may have several.
size_t StringEnd(absl::string_view text, size_t begin) {
  const char quote = text[begin];
  // As many as can close a string of several lines: the last three do, up to two are its own.
  const auto quotes_at = [&](size_t at) {
    const absl::string_view next = text.substr(at, 5);
    return std::min(next.find_first_not_of(quote), next.size());
  };
  const bool lines = quotes_at(begin) >= 3;
  for (size_t i = begin + (lines ? 3 : 1); i < text.size(); ++i) {
    if (text[i] == '\\' && quote == '"') {
      ++i;  // what is escaped ends nothing
    } else if (text[i] == '\n' && !lines) {
      return i;
    } else if (text[i] == quote && !lines) {
      return i + 1;
    } else if (text[i] == quote) {
      const size_t quotes = quotes_at(i);
      if (quotes >= 3) return i + quotes;
    }
  }
  return text.size();
}

// The line of the first dotted key with too many parts. Up to where the text stops being TOML,
// which is as far as the parser builds anything, it sees the keys that the parser sees.
std::optional<size_t> LineOfDeepKey(absl::string_view text) {
  size_t line = 1;
  size_t parts = 1;
  size_t i = 0;
  while (i < text.size()) {
    const char c = text[i];
    size_t end = i + 1;
    if (c == '"' || c == '\'') {
      end = StringEnd(text, i);
    } else if (c == '#') {
      end = std::min(text.find('\n', i), text.size());
    } else if (c == '.') {
      // A number has a dot as well, but not so many.
      if (++parts > kMaxKeyParts) return line;
    } else if (absl::string_view("\n=,[]{}").find(c) != absl::string_view::npos) {
      parts = 1;  // no key has one of these outside of quotes
    }
    line += static_cast<size_t>(std::count(text.begin() + i, text.begin() + end, '\n'));
    i = end;
  }
  return std::nullopt;
}

class Reader {
 public:
  explicit Reader(absl::string_view name) : name_(name) {}

  absl::StatusOr<ServiceConfig> Read(const toml::table& root) {
    for (const auto& [key, node] : root) {
      if (key.str() == "host") {
        const toml::table* table = node.as_table();
        if (table == nullptr) return At(key, key.str(), "must be a table, [host]");
        VIRTBAY_RETURN_IF_ERROR(ReadHost(*table));
      } else if (key.str() == "device") {
        const toml::array* devices = node.as_array();
        if (devices == nullptr) return At(key, key.str(), "must be an array of tables, [[device]]");
        if (devices->size() > kMaxDevices) return At(key, key.str(), "has too many entries");
        for (const toml::node& device : *devices) {
          const toml::table* table = device.as_table();
          if (table == nullptr) {
            return At(device.source(), "device", "must be an array of tables, [[device]]");
          }
          VIRTBAY_RETURN_IF_ERROR(ReadDevice(*table));
        }
      } else {
        return At(key, key.str(), "unknown key");
      }
    }
    return std::move(config_);
  }

 private:
  absl::Status At(const toml::source_region& where, std::string_view key,
                  absl::string_view reason) const {
    return absl::InvalidArgumentError(
        absl::StrCat(name_, ":", where.begin.line, ": ", Printable(key), ": ", reason));
  }
  absl::Status At(const toml::key& key, std::string_view text, absl::string_view reason) const {
    return At(key.source(), text, reason);
  }

  static absl::StatusOr<KeyValue> Scalar(const toml::node& node) {
    if (const auto* text = node.as_string()) return KeyValue(std::string(text->get()));
    if (const auto* integer = node.as_integer()) return KeyValue(integer->get());
    if (const auto* number = node.as_floating_point()) return KeyValue(number->get());
    if (const auto* flag = node.as_boolean()) return KeyValue(flag->get());
    return absl::InvalidArgumentError("must be a string, a number, true or false");
  }

  absl::Status ReadHost(const toml::table& table) {
    for (const auto& [key, node] : table) {
      const std::string_view text = key.str();
      if (text == "log-level") {
        const auto* value = node.as_string();
        if (value == nullptr) return At(key, text, "must be a string");
        const auto level = ParseLogLevel(value->get());
        if (!level.ok()) return At(key, text, level.status().message());
        config_.log_level = *level;
      } else if (text == "control-socket") {
        const auto* value = node.as_string();
        if (value == nullptr) return At(key, text, "must be a string");
        if (value->get().empty()) return At(key, text, "must not be empty");
        config_.control_socket = value->get();
      } else if (text == "state-dir") {
        const auto* value = node.as_string();
        if (value == nullptr) return At(key, text, "must be a string");
        if (value->get().empty()) return At(key, text, "must not be empty");
        config_.state_dir = value->get();
      } else if (text == "guest-channel") {
        const auto* value = node.as_string();
        if (value == nullptr) return At(key, text, "must be a string");
        const auto address = ParseGuestAddress(value->get());
        if (!address.ok()) return At(key, text, address.status().message());
        config_.guest_channel = *address;
      } else if (text == "plugin-path") {
        VIRTBAY_RETURN_IF_ERROR(ReadPluginPath(key, node));
      } else if (text == "rlimit-nofile") {
        const auto* value = node.as_integer();
        if (value == nullptr) return At(key, text, "must be an integer");
        if (value->get() != 0 && (value->get() < static_cast<int64_t>(kLeastFileLimit) ||
                                  value->get() > static_cast<int64_t>(kMostFileLimit))) {
          return At(key, text,
                    absl::StrCat("must be 0 or from ", kLeastFileLimit, " to ", kMostFileLimit));
        }
        config_.rlimit_nofile = static_cast<uint64_t>(value->get());
      } else if (text == "shared-arena-size") {
        const auto value = Scalar(node);
        const auto size =
            value.ok() ? AsArenaSize(*value) : absl::StatusOr<uint64_t>(value.status());
        if (!size.ok()) return At(key, text, size.status().message());
        config_.shared_arena_size = *size;
      } else if (text == "watch") {
        const auto* value = node.as_boolean();
        if (value == nullptr) return At(key, text, "must be true or false");
        config_.watch = value->get();
      } else if (text == "contain") {
        const auto* value = node.as_boolean();
        if (value == nullptr) return At(key, text, "must be true or false");
        config_.contain = value->get();
      } else if (text == "sigbus-guard") {
        const auto* value = node.as_boolean();
        if (value == nullptr) return At(key, text, "must be true or false");
        config_.sigbus_guard = value->get();
      } else {
        return At(key, absl::StrCat("host.", Printable(text)), "unknown key");
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadPluginPath(const toml::key& key, const toml::node& node) {
    if (const auto* one = node.as_string()) {
      if (one->get().empty()) return At(key, key.str(), "must not be empty");
      config_.plugin_dirs.emplace_back(one->get());
      return absl::OkStatus();
    }
    const auto* many = node.as_array();
    if (many == nullptr) return At(key, key.str(), "must be a string or an array of strings");
    for (const toml::node& entry : *many) {
      const auto* text = entry.as_string();
      if (text == nullptr || text->get().empty()) {
        return At(entry.source(), key.str(), "must be a string or an array of strings");
      }
      config_.plugin_dirs.emplace_back(text->get());
    }
    return absl::OkStatus();
  }

  absl::Status ReadDevice(const toml::table& table) {
    DeviceConfig device;
    device.origin = absl::StrCat(name_, ":", table.source().begin.line);
    const toml::key* name_key = nullptr;
    const toml::key* socket_key = nullptr;
    for (const auto& [key, node] : table) {
      if (key.str() == "options") {
        VIRTBAY_RETURN_IF_ERROR(ReadOptions(key, node, &device));
        continue;
      }
      if (key.str() == "share") {
        VIRTBAY_RETURN_IF_ERROR(ReadShares(key, node, &device));
        continue;
      }
      const auto value = Scalar(node);
      const absl::Status set =
          value.ok() ? SetDeviceKey(View(key.str()), *value, &device) : UnknownOr(key.str(), value);
      if (!set.ok()) return At(key, key.str(), set.message());
      // The name may come with the device's string.
      if (key.str() == "name" || (key.str() == "device-string" && name_key == nullptr)) {
        name_key = &key;
      }
      if (key.str() == "socket" || key.str() == "fd") socket_key = &key;
    }
    const absl::Status finished = FinishDevice(&device);
    if (!finished.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(device.origin, ": ", finished.message()));
    }
    VIRTBAY_RETURN_IF_ERROR(
        Unique(&names_, device.spec.name, *name_key, "another device has this name"));
    const std::string socket =
        device.socket_path.empty() ? absl::StrCat("fd ", device.socket_fd) : device.socket_path;
    VIRTBAY_RETURN_IF_ERROR(
        Unique(&sockets_, socket, *socket_key, "another device has this socket"));
    config_.devices.push_back(std::move(device));
    return absl::OkStatus();
  }

  // A table or a date where a scalar belongs: name the unknown key first, if it is one.
  static absl::Status UnknownOr(std::string_view key, const absl::StatusOr<KeyValue>& value) {
    DeviceConfig scratch;
    const absl::Status probe = SetDeviceKey(View(key), KeyValue(false), &scratch);
    return probe.message() == "unknown key" ? probe : value.status();
  }

  absl::Status ReadOptions(const toml::key& key, const toml::node& node, DeviceConfig* device) {
    const toml::table* options = node.as_table();
    if (options == nullptr) return At(key, key.str(), "must be a table, [device.options]");
    for (const auto& [option, entry] : *options) {
      const auto value = Scalar(entry);
      const absl::Status set =
          value.ok() ? SetDeviceOption(View(option.str()), *value, device) : value.status();
      if (!set.ok()) {
        return At(option, absl::StrCat("options.", Printable(option.str())), set.message());
      }
      device->option_origins[std::string(option.str())] =
          absl::StrCat(name_, ":", option.source().begin.line);
    }
    return absl::OkStatus();
  }

  absl::Status ReadShares(const toml::key& key, const toml::node& node, DeviceConfig* device) {
    constexpr char kForm[] = "must be an array of tables, [[device.share]]";
    const toml::array* shares = node.as_array();
    if (shares == nullptr) return At(key, key.str(), kForm);
    for (const toml::node& entry : *shares) {
      const toml::table* table = entry.as_table();
      if (table == nullptr) return At(entry.source(), "share", kForm);
      ShareConfig share;
      share.origin = absl::StrCat(name_, ":", table->source().begin.line);
      for (const auto& [option, option_node] : *table) {
        const auto value = Scalar(option_node);
        const absl::Status set =
            value.ok() ? SetShareKey(View(option.str()), *value, &share.spec) : value.status();
        if (!set.ok()) {
          return At(option, absl::StrCat("share.", Printable(option.str())), set.message());
        }
      }
      if (share.spec.path.empty()) return At(table->source(), "share.path", "is missing");
      device->shares.push_back(std::move(share));
    }
    return absl::OkStatus();
  }

  absl::Status Unique(std::map<std::string, toml::source_index>* seen, const std::string& value,
                      const toml::key& key, absl::string_view reason) const {
    const auto [it, inserted] = seen->emplace(value, key.source().begin.line);
    if (inserted) return absl::OkStatus();
    return At(key, key.str(),
              absl::StrCat("'", Printable(value), "': ", reason, " (line ", it->second, ")"));
  }

  const std::string name_;
  ServiceConfig config_;
  std::map<std::string, toml::source_index> names_;
  std::map<std::string, toml::source_index> sockets_;
};

}  // namespace

absl::StatusOr<ServiceConfig> ParseConfig(absl::string_view text, absl::string_view name) {
  if (const std::optional<size_t> line = LineOfDeepKey(text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ":", *line, ": a dotted key has more than ", kMaxKeyParts, " parts"));
  }
  try {
    const toml::table root = toml::parse(std::string_view(text.data(), text.size()));
    return Reader(name).Read(root);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ":", error.source().begin.line,
                                                   ": syntax: ", Printable(error.description())));
  } catch (const std::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ":1: syntax: ", error.what()));
  }
}

absl::StatusOr<ServiceConfig> ReadConfigFile(const std::filesystem::path& path) {
  VIRTBAY_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  return ParseConfig(text, path.string());
}

}  // namespace virtbay::device_host
